"""A look that grows, and forgets: one more picture over the rows of those before, and whole pictures taken out again.

Nothing runs twice. A picture that comes brings the text in front of it, and the decoder runs on both over the cache.
One that leaves gives its columns back: what stands behind it moves up, and its keys are turned back by RoPE.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate._transformers import DummyLayer, PreTrainedModel, rotation, turns, with_cache
from foveate.ask.conversation import MEDIA, Conversation, Part
from foveate.ask.loaded import Loaded
from foveate.ask.look import Inputs, Look, end_of_pictures, prefill, without_pixels
from foveate.ask.media import Medium, Picture, read_medium
from foveate.ask.prompt import Prompt, encode, is_vision, prepare, reads_videos, text_of
from foveate.ask.wording import QUESTION, Wording, end_of_head
from foveate.contract.method import LastFrame, Method
from foveate.core.grid import Grid
from foveate.engine.cache import pruned_layer
from foveate.engine.copies import copy_of, settle
from foveate.engine.session import drop_or_not
from foveate.engine.trace import PrefillRecord
from foveate.errors import SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.families.tap import attention_of
from foveate.plain.upstream import brief
from foveate.registry import family_for
from foveate.video import Clip
from foveate.video.clip import FINE
from foveate.video.decoding import UNNAMED
from foveate.video.wanted import FramesWanted


@dataclass(frozen=True, eq=False)
class Seen:
    """What one look saw: pictures or films that stand together in a look that has grown, and leave it together.

    Attributes:
        prompt: They alone, with all that is said.
        wording: What is written around a question behind them.
        ids: The columns that they brought: the text in front of them, and they; (1, columns) int64.
        first: Which of these is their first vision token.
        opening: How many tokens in front of that are theirs, such as "<|vision_start|>".
        method: What dropped in them, with its budget; None for the untouched model.
        record: What was dropped.
        at: When a frame was seen, in seconds.
        last: The last frame of a film, for what compares the next with it.
    """

    prompt: Prompt
    wording: Wording
    ids: Tensor
    first: int
    opening: int = 0
    method: Method | None = None
    record: PrefillRecord | None = None
    at: float | None = None
    last: LastFrame = field(default_factory=LastFrame)

    @classmethod
    def at_first(cls, prompt: Prompt, wording: Wording, look: Look, method: Method | None, last: LastFrame) -> "Seen":
        """What stands at the beginning of a look."""
        return cls(prompt, wording, look.ids, first_of(prompt), method=method, last=last).looked_at(look)

    def looked_at(self, look: Look) -> "Seen":
        """These with what was dropped, and of their pixels the shape alone."""
        prompt = replace(self.prompt, inputs={**self.prompt.inputs, **without_pixels(self.prompt.inputs)})
        return replace(self, prompt=prompt, record=look.trace.history[-1] if look.trace.history else None)

    @property
    def parts(self) -> list[Part]:
        """They as parts of a conversation."""
        return [part for part in self.prompt.conversation.parts if part[0] in MEDIA]

    @property
    def columns(self) -> int:
        """Columns of the look that are theirs."""
        return self.ids.shape[1]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What belongs to their columns: of the ids' shape, 0 for the text in front of them, and else as it is."""
        shape, start, own = self.prompt.inputs["input_ids"].shape, first_of(self.prompt), {}
        for name, value in self.prompt.inputs.items():
            own[name] = value
            if value.shape == shape:
                theirs = value[:, start : start + self.columns - self.first]
                own[name] = torch.nn.functional.pad(theirs, (self.first, 0))
        return without_pixels(own)

    def behind(self, other: "Seen", kept: int, gone: int) -> "Seen":
        """These without their first columns, `gone` many, behind the first ones of another, `kept` many."""
        ids = torch.cat((other.ids[:, :kept], self.ids[:, gone:]), dim=1)
        return replace(self, ids=ids, first=self.first - gone + kept)


def first_of(prompt: Prompt) -> int:
    """The column of a prompt's first vision token."""
    return int(is_vision(prompt.card.config, prompt.inputs["input_ids"][0]).nonzero()[0])


def inputs_of(pictures: Sequence[Seen]) -> dict[str, Tensor]:
    """What belongs to the ids of pictures one behind the other: what is of the ids' shape along the columns, and all
    else, which has a picture a row, along the first dimension. Pixels of other shapes than the others' are left out.
    """
    joined: dict[str, Tensor] = {}
    parts = [(seen.ids.shape, seen.inputs) for seen in pictures]
    for name in dict.fromkeys(name for _, inputs in parts for name in inputs):
        values = [inputs[name] for _, inputs in parts if name in inputs]
        if all(name not in inputs or inputs[name].shape == shape for shape, inputs in parts):
            columns = [inputs.get(name, values[0].new_zeros(shape)) for shape, inputs in parts]
            joined[name] = torch.cat(columns, dim=1)
        elif len({value.shape[1:] for value in values}) == 1:
            joined[name] = torch.cat(values)
    return joined


@dataclass(frozen=True, eq=False)
class GrownPrompt(Prompt):
    """A question behind pictures that were seen one by one.

    Attributes:
        pictures: What each was alone.
        methods: What dropped in each, with its budget.
    """

    pictures: tuple[Prompt, ...] = ()
    methods: tuple[Method | None, ...] = ()

    def _of_all(self, name: str) -> list[Any] | None:
        """What each picture alone says of itself, one behind the other; None where one says nothing."""
        parts = [getattr(prompt, name) for prompt in self.pictures]
        if any(part is None for part in parts):
            return None
        return list(itertools.chain(*parts))

    @property
    def looks(self) -> int:
        return len(self.pictures)

    def asked(self, method: Method) -> float | None:
        total = 0.0
        for prompt, of_picture in zip(self.pictures, self.methods, strict=True):
            share = None if of_picture is None else prompt.asked(of_picture)
            if share is None:
                return None
            total += share * prompt.vision_tokens
        return total / self.vision_tokens

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(self._of_all("sizes") or ())

    @property
    def tower_images(self) -> list[int] | None:
        return self._of_all("tower_images")

    @property
    def videos(self) -> list[bool] | None:
        return self._of_all("videos")

    @property
    def grids(self) -> list[tuple[Grid, ...]] | None:
        return self._of_all("grids")


# -- what a picture brings ----------------------------------------------------------------------------------------


def coming(
    loaded: Loaded,
    conversation: Conversation,
    wording: Wording,
    part: Part,
    at: float | None,
    showing: Mapping[str, Any],
) -> Seen:
    """One more picture as the model gets it behind those that it has seen.

    It is prepared alone, and once more behind itself: what the processor writes between two pictures, and in front of
    each, stands there as it would behind any other.

    Args:
        loaded: The model.
        conversation: What was said and shown.
        wording: What is written around a question behind the last that was shown.
        part: The picture or film, as a part of a conversation.
        at: When it was seen, in seconds.
        showing: `fit`, as for `VLM.look`.

    Raises:
        FoveateError: As `prepare`.
        UnsupportedError: If the chat template writes another beginning with one picture more.
    """
    few = showing.get("frames") is None and showing.get("fps") is None
    options: dict[str, Any] = {"fit": showing.get("fit", "own"), "as_pictures": True, "few": few}
    shown = len(conversation.media)
    said = conversation.without_media(range(shown))
    alone = prepare(loaded, said.with_media_behind([part]).with_text(QUESTION), **options)
    parts = [part for part in alone.conversation.parts if part[0] in MEDIA]  # of a film perhaps its frames
    last = conversation.without_media(range(shown - 1))
    mixes = parts[-1][0] not in dict(last.parts)  # a film behind a picture, or a picture behind a film
    if not mixes:
        last = last.with_media([parts[-1][1]])
    twice = encode(loaded.model, loaded.processor, last.with_media_behind(parts).with_text(QUESTION))
    text, longer = (
        text_of(loaded.model, loaded.processor, whole.with_media_behind(parts).with_text(QUESTION))
        for whole in (last, conversation)
    )
    between = text[end_of_head(loaded, text_of(loaded.model, loaded.processor, last.with_text(QUESTION))) :]
    if not longer.startswith(wording.head) or longer.removeprefix(wording.head) != between:
        raise UnsupportedError(
            f"The chat template of {loaded.name} writes another beginning with one picture more. Look at all at once."
        )
    ids = twice["input_ids"][0].to(loaded.model.device)
    places = is_vision(loaded.model.config, ids).nonzero()[:, 0].tolist()
    before = len(places) // (len(parts) + 1)  # of the picture that stands in for those that were seen
    if mixes:
        before = len(places) - alone.vision_tokens
    gap = ids[places[before - 1] + 1 + family_for(loaded.model).closing_tokens : places[before]]
    own = alone.inputs["input_ids"][0]
    start, end = first_of(alone), end_of_pictures(loaded.model, own)
    opening = alike(gap.flip(0), own[:start].flip(0))
    behind = Wording.of(loaded, alone.conversation.without_last_text(), QUESTION, own)
    return Seen(alone, behind, torch.cat((gap, own[start:end]))[None], len(gap), opening, at=at)


def part_of(loaded: Loaded, medium: Medium, at: float | None, frames: int | None, fps: float | None) -> Part:
    """A picture or film as a part of a conversation; a frame with a time is a film where the model reads films."""
    if not isinstance(at, int | float | None):
        raise SettingError(f"at is a time in seconds; got {brief(at)}.")
    read = read_medium(medium, FramesWanted(frames, fps))
    if at is not None and isinstance(read, Picture) and reads_videos(loaded.processor):
        read = Clip(UNNAMED, np.array(read.image)[None], (at,), 0.0, at + 1, FINE, read.note, chosen=True)
    return ("video" if isinstance(read, Clip) else "image"), read


# -- growing ------------------------------------------------------------------------------------------------------


def grow(
    model: PreTrainedModel, look: Look, pictures: Sequence[Seen], method: Method | None, cuda_graphs: bool = False
) -> Look:
    """Run one more picture, with the text in front of it, over what was seen.

    Args:
        model: The one that looked, in no context.
        look: What it saw; it stays as it is.
        pictures: All, the new one behind the others, with its pixels.
        method: What drops in it, with its budget; None for the untouched model.
        cuda_graphs: As for `look_at`.

    Returns:
        What has been seen now. Its trace is of the new picture alone.

    Raises:
        UnsupportedError: If rows of a picture are others where something stands in front of it in the cache.
    """
    if not family_for(model).grows:
        raise UnsupportedError(
            f"A look of a {model.config.model_type!r} does not grow: its pictures are seen both ways, or that is not "
            "known. Look at all of them at once with vlm.look."
        )
    new = pictures[-1]
    pixels = {name: value for name, value in new.prompt.inputs.items() if name.startswith("pixel_values")}
    ids, inputs = torch.cat((look.ids, new.ids), dim=1), inputs_of(pictures)
    run = {**new.inputs, **pixels, "input_ids": new.ids, "attention_mask": torch.ones_like(ids)}
    positions = positions_of(model, ids, inputs)
    if positions is not None:
        run["position_ids"] = positions[..., look.tokens :]
    with drop_or_not(model, *going_on(method, new.last, cuda_graphs)) as trace:
        cache = prefill(model, {**run, **with_cache(copy_of(look.cache))})
    return replace(look, ids=ids, inputs=inputs, cache=settle(cache), trace=trace)


def going_on(method: Method | None, last: LastFrame, cuda_graphs: bool) -> tuple[Method | None, bool]:
    """What drops in the next part of a film, and whether graphs serve: one would replay the frame before as well."""
    if method is None:
        return None, cuda_graphs
    goes_on = method.goes_on(last)
    return goes_on, cuda_graphs and goes_on is method


def positions_of(model: PreTrainedModel, ids: Tensor, inputs: Inputs) -> Tensor | None:
    """M-RoPE's position ids of a whole prompt, (axes, 1, columns) int64; None where a position is a column."""
    core = family_for(model).core
    if not hasattr(core, "get_rope_index"):
        return None
    names = inspect.signature(core.get_rope_index).parameters
    arguments = {name: value for name, value in inputs.items() if name in names}
    positions: Tensor = core.get_rope_index(ids, attention_mask=torch.ones_like(ids), **arguments)[0]
    return positions


# -- forgetting ---------------------------------------------------------------------------------------------------


def forget(model: PreTrainedModel, look: Look, start: int, end: int, pictures: Sequence[Seen]) -> Look:
    """A look without some of its columns: those behind move up, and their keys are turned back.

    Args:
        model: The one that looked.
        look: What it saw; it stays as it is.
        start, end: Columns that leave.
        pictures: Those that stay.

    Raises:
        UnsupportedError: If positions cannot be turned back.
    """
    family = family_for(model)
    refuse_unturnable(family, end - start)
    ids, inputs = torch.cat((look.ids[:, :start], look.ids[:, end:]), dim=1), inputs_of(pictures)
    back = None
    before, behind = positions_of(model, look.ids, look.inputs), positions_of(model, ids, inputs)
    if before is not None and behind is not None and end < look.tokens:
        back = int(before[0, 0, end] - behind[0, 0, start])
    cache = copy_of(look.cache)
    with torch.inference_mode():
        for index, layer in enumerate(cache.layers):
            if not isinstance(layer, DummyLayer) and layer.is_initialized:
                turn = partial(turned_back, family, index) if turns(attention_of(family.layers[index])) else None
                pruned_layer(cache, index).forget(start, end, turn, back)
    return replace(look, ids=ids, inputs=inputs, cache=settle(cache))


def without(pictures: tuple[Seen, ...], place: int) -> tuple[int, int, tuple[Seen, ...]]:
    """Which columns leave with what one look saw, from where to where, and what is left.

    The text in front of the first picture stays, and so does what was said in front of the others.
    """
    offset = sum(seen.columns for seen in pictures[:place])
    gone = pictures[place]
    if place + 1 == len(pictures):
        return offset, offset + gone.columns, pictures[:place]
    later = pictures[place + 1]
    start, end = gone.first - gone.opening, later.first - later.opening
    if place == 0:  # in front of the next, what would stand there if it were the first
        lead = later.prompt.inputs["input_ids"][0, : first_of(later.prompt)]
        start = alike(lead, gone.ids[0, : gone.first])
        end = later.first - (len(lead) - start)
        if end < 0 or not torch.equal(later.ids[0, end : later.first], lead[start:]):
            raise UnsupportedError("What stands in front of the first picture belongs to it. Look anew.")
    rest = (*pictures[:place], later.behind(gone, start, end), *pictures[place + 2 :])
    return offset + start, offset + gone.columns + end, rest


def alike(ids: Tensor, others: Tensor) -> int:
    """With how many equal ids two texts begin."""
    pairs = zip(ids.tolist(), others.tolist(), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def refuse_unturnable(family: Family, columns: int) -> None:
    """Refuse a decoder whose rows cannot take the positions of others.

    Raises:
        UnsupportedError: If that is so; the message says how many pictures of so many columns fit.
    """
    rotary = getattr(family.text, "rotary_emb", None)
    kinds = getattr(rotary, "rope_type", "default")
    scaled = {"dynamic", "longrope"} & set(kinds.values() if isinstance(kinds, dict) else [kinds])
    why = None
    if family.recurrent:
        why = "has layers with a state, from which nothing can be taken"
    elif rotary is None or scaled or any(rotation(attention_of(layer)) is None for layer in family.layers):
        why = "does not number its tokens by RoPE that can be turned back"
    if why is not None:
        most = family.text.config.max_position_embeddings
        raise UnsupportedError(
            f"A {family.model.config.model_type!r} forgets no pictures: it {why}. Its {most:,} positions hold "
            f"{most // columns:,} pictures of {columns:,} columns: leave memory out, and look anew behind so many."
        )


def turned_back(family: Family, index: int, keys: Tensor, positions: int) -> Tensor:
    """Keys of a decoder layer as they are so many positions earlier: (samples, heads, slots, head size), in float32.

    RoPE adds angles, so keys turned by p are turned by −n to stand at p − n. A table may also scale (YaRN): the keys
    were scaled when they came.
    """
    exact = keys.float()
    axes = 3 if hasattr(family.core, "get_rope_index") else 0
    ids = torch.full((1, 1), -positions, device=keys.device)
    cos, sin = family.rotary(index, exact, ids.expand(axes, 1, 1) if axes else ids)
    length = (cos.square() + sin.square()).sqrt()
    rotate = rotation(attention_of(family.layers[index]))
    assert rotate is not None
    return rotate(exact, exact, cos / length, sin / length)[1].to(keys.dtype)
