"""Grow a look by one more image, and forget earlier images, without running anything twice.

A new image comes with the text before it, and the decoder prefills both over the cache. When an image is forgotten, its
columns leave the cache, later columns move to earlier positions, and their keys are rotated back by RoPE.
"""

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate._transformers import DummyLayer, PreTrainedModel, attention_of, rotation, turns, with_cache
from foveate.ask.conversation import MEDIA, Conversation, Part
from foveate.ask.loaded import Loaded, quiet
from foveate.ask.look import Inputs, Look, end_of_pictures, follows_length, prefill, without_pixels
from foveate.ask.media import Medium, Picture, read_medium
from foveate.ask.prompt import Prompt, encode, in_common, is_vision, prepare, reads_videos, text_of
from foveate.ask.wording import QUESTION, Wording, end_of_head
from foveate.contract.method import LastFrame, Method
from foveate.engine.cache import pruned_layer
from foveate.engine.copies import compact, copy_of
from foveate.engine.doors import drop_or_not
from foveate.engine.trace import PrefillRecord
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.registry import family_for
from foveate.video import Clip
from foveate.video.clips import FINE
from foveate.video.decoding import UNNAMED
from foveate.video.wanted import FramesWanted

SPREAD = "texts stand between the pictures of this look: forgetting them takes with_texts=True."


@dataclass(frozen=True, eq=False)
class Seen:
    """The images or videos that one look added. They are forgotten together.

    Attributes:
        prompt: A prompt of these media alone, with the conversation's texts.
        wording: The text around a question after them.
        ids: Their columns: the text before them and their own tokens, (1, columns) int64.
        first: Index in `ids` of their first vision token.
        method: The method with its budget; None for the untouched model.
        record: The record of this prefill.
        at: The frame's time in seconds.
        last: The last frame of a video, for methods that compare the next frame with it.
    """

    prompt: Prompt
    wording: Wording
    ids: Tensor
    first: int
    method: Method | None = None
    record: PrefillRecord | None = None
    at: float | None = None
    last: LastFrame = field(default_factory=LastFrame)

    def with_record(self, look: Look) -> "Seen":
        """Return this entry with the look's record, and with its pixels reduced to their shape."""
        prompt = replace(self.prompt, inputs={**self.prompt.inputs, **without_pixels(self.prompt.inputs)})
        return replace(self, prompt=prompt, record=look.trace.history[-1] if look.trace.history else None)

    @property
    def parts(self) -> list[Part]:
        """The media as parts of a conversation."""
        return [part for part in self.prompt.conversation.parts if part[0] in MEDIA]

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user."""
        whole, count = self.prompt.conversation, len(self.parts)
        between = whole.split(1)[1].split(count - 1)[0] if count > 1 else None
        if between is None or not (between.texts or len(between.turns) > 1):
            return self.prompt.notes
        return (*self.prompt.notes, SPREAD)

    @property
    def columns(self) -> int:
        """Number of the look's columns that belong to this entry."""
        return self.ids.shape[1]

    @property
    def inputs(self) -> dict[str, Tensor]:
        """The inputs for this entry's columns.

        Per-token inputs are cut from the prompt, with 0 for the text before the media: (1, columns). Other inputs are
        kept, with pixels reduced to their shape.
        """
        shape, start, own = self.prompt.inputs["input_ids"].shape, self.prompt.first, {}
        for name, value in self.prompt.inputs.items():
            own[name] = value
            if value.shape == shape:
                theirs = value[:, start : start + self.columns - self.first]
                own[name] = torch.nn.functional.pad(theirs, (self.first, 0))
        return without_pixels(own)


def inputs_of(pictures: Sequence[Seen]) -> dict[str, Tensor]:
    """Concatenate the inputs of consecutive entries.

    Per-token inputs, (1, columns) each, are joined along the columns. An entry without one gets zeros. Other inputs,
    with one row per image, are joined along the first dimension. They are left out if their other dimensions differ.
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
    """A question after several looks.

    Attributes:
        pictures: The prompt of each look alone.
        methods: The method of each look, with its budget.
    """

    pictures: tuple[Prompt, ...] = ()
    methods: tuple[Method | None, ...] = ()

    sizes = property(lambda self: self._of_all("sizes"))
    tower_images = property(lambda self: self._of_all("tower_images"))
    videos = property(lambda self: self._of_all("videos"))
    grids = property(lambda self: self._of_all("grids"))

    def _of_all(self, name: str) -> Any:
        """Join a property of all looks. Return None if one of them does not know its own."""
        parts = [getattr(prompt, name) for prompt in self.pictures]
        return None if None in parts else type(parts[0])(itertools.chain(*parts))

    @property
    def looks(self) -> int:
        return len(self.pictures)

    def budget_share(self, method: Method) -> float | None:
        total = 0.0
        for prompt, of_picture in zip(self.pictures, self.methods, strict=True):
            share = None if of_picture is None else prompt.budget_share(of_picture)
            if share is None:
                return None
            total += share * prompt.vision_tokens
        return total / self.vision_tokens


# -- what a picture brings ----------------------------------------------------------------------------------------


def coming(
    loaded: Loaded,
    conversation: Conversation,
    wording: Wording,
    part: Part,
    at: float | None,
    showing: Mapping[str, Any],
) -> Seen:
    """Prepare one more image or video to follow those seen before.

    It is encoded twice: alone, and after a copy of itself (after the last one seen, if one is an image and the other a
    video). The second encoding shows which tokens the processor writes between the two; see `lead_of`.

    Args:
        loaded: The model and its processor.
        conversation: The conversation so far.
        wording: The text around a question after the last image.
        part: The image or video, as a part of a conversation.
        at: Its time in seconds.
        showing: `fit`, `frames` and `fps`, as for `VLM.look`.

    Raises:
        FoveateError: As in `prepare`.
        UnsupportedError: If the chat template changes the text before the earlier images.
    """
    few = showing.get("frames") is None and showing.get("fps") is None
    options: dict[str, Any] = {"fit": showing.get("fit", "own"), "as_pictures": True, "few": few}
    shown = len(conversation.media)
    said = conversation.without_media(range(shown))
    alone = prepare(loaded, said.with_media_behind([part]).with_text(QUESTION), **options)
    parts = [part for part in alone.conversation.parts if part[0] in MEDIA]  # a video may be split into its frames
    last = _with_copy(conversation, parts)
    text, longer = (
        text_of(loaded.model, loaded.processor, whole.with_media_behind(parts).with_text(QUESTION))
        for whole in (last, conversation)
    )
    between = text[end_of_head(loaded, text_of(loaded.model, loaded.processor, last.with_text(QUESTION))) :]
    if not longer.startswith(wording.head) or longer.removeprefix(wording.head) != between:
        raise UnsupportedError(
            f"The chat template of {loaded.name} writes a different beginning with one more picture. "
            "Pass all pictures to vlm.look at once."
        )
    lead = lead_of(loaded, conversation, parts, alone.vision_tokens)
    own = alone.inputs["input_ids"][0]
    start, end = alone.first, end_of_pictures(loaded.model, own)
    behind = Wording.of(loaded, alone.conversation.without_last_text(), QUESTION, own)
    return Seen(alone, behind, torch.cat((lead, own[start:end]))[None], len(lead), at=at)


def lead_of(loaded: Loaded, conversation: Conversation, parts: Sequence[Part], tokens: int) -> Tensor:
    """Return the ids before images or videos that follow a conversation: its text since the last image, (ids,) int64.

    Args:
        loaded: The model and its processor.
        conversation: What comes before. Without images, its whole text is returned.
        parts: The images or videos.
        tokens: Their vision tokens.
    """
    behind = _with_copy(conversation, parts).with_media_behind(parts).with_text(QUESTION)
    ids: Tensor = encode(loaded.model, loaded.processor, behind)["input_ids"][0].to(loaded.model.device)
    places = is_vision(loaded.model.config, ids).nonzero()[:, 0].tolist()
    if not conversation.media:
        return ids[: places[0]]
    # Ids [<start>, I, I, <end>, \n, <start>, I, I, …] with 2 before and 1 closing token: [\n, <start>].
    before = len(places) // (len(parts) + 1)  # vision tokens of the copy that stands in for the earlier images
    if len({kind for kind, _ in behind.parts if kind in MEDIA}) > 1:
        before = len(places) - tokens
    return ids[places[before - 1] + 1 + family_for(loaded.model).closing_tokens : places[before]]


def _with_copy(conversation: Conversation, parts: Sequence[Part]) -> Conversation:
    """Replace the images by a copy of the last new one, or by the last if one is an image and the other a video."""
    last = conversation.without_media(range(len(conversation.media) - 1))
    kind, medium = parts[-1]
    return last.with_media([medium]) if kind in dict(last.parts) else last


def part_of(loaded: Loaded, medium: Medium, at: float | None, frames: int | None, fps: float | None) -> Part:
    """Read an image or video as a part of a conversation.

    An image with a time becomes a video of one frame if the model reads videos.
    """
    read = read_medium(medium, FramesWanted(frames, fps))
    if at is not None and isinstance(read, Picture) and reads_videos(loaded.processor):
        read = Clip(UNNAMED, np.array(read.image)[None], (at,), 0.0, at + 1, FINE, read.note, chosen=True)
    return ("video" if isinstance(read, Clip) else "image"), read


# -- growing ------------------------------------------------------------------------------------------------------


def grow(
    model: PreTrainedModel, look: Look, pictures: Sequence[Seen], method: Method | None, cuda_graphs: bool = False
) -> Look:
    """Prefill one more image, with the text before it, over a look's cache.

    Args:
        model: The model that looked, without an active `drop`.
        look: The look so far. It does not change.
        pictures: All entries. The new one is last and has its pixels.
        method: The method with its budget; None for the untouched model.
        cuda_graphs: As for `look_at`.

    Returns:
        The grown look. Its trace covers only the new image.

    Raises:
        UnsupportedError: If an image's rows would differ after a filled cache, as with bidirectional attention.
    """
    if not family_for(model).grows:
        raise UnsupportedError(
            f"A look of a {model.config.model_type!r} cannot grow: its attention over pictures is bidirectional, or "
            "not known to be causal. Pass all pictures to vlm.look at once."
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
    return replace(look, ids=ids, inputs=inputs, cache=compact(cache), trace=trace)


def going_on(method: Method | None, last: LastFrame, cuda_graphs: bool) -> tuple[Method | None, bool]:
    """Return the method for the next part of a video, and whether to use CUDA graphs.

    A method that compares with the previous frame runs without graphs, because a graph would replay the old frame.
    """
    if method is None:
        return None, cuda_graphs
    goes_on = method.goes_on(last)
    return goes_on, cuda_graphs and goes_on is method


def positions_of(model: PreTrainedModel, ids: Tensor, inputs: Inputs) -> Tensor | None:
    """Return M-RoPE's position ids of a whole prompt, (axes, 1, columns) int64. None if a position is the column."""
    core = family_for(model).core
    if not hasattr(core, "get_rope_index"):
        return None
    names = inspect.signature(core.get_rope_index).parameters
    arguments = {name: value for name, value in inputs.items() if name in names}
    positions: Tensor = core.get_rope_index(ids, attention_mask=torch.ones_like(ids), **arguments)[0]
    return positions


# -- forgetting ---------------------------------------------------------------------------------------------------


def forget(model: PreTrainedModel, look: Look, start: int, end: int, pictures: Sequence[Seen]) -> Look:
    """Remove columns [start, end) from a look. Later columns move up, and their keys are rotated back.

    Args:
        model: The model that looked.
        look: The look. It does not change.
        start, end: The columns to remove.
        pictures: The entries that stay.

    Raises:
        UnsupportedError: If the keys' positions cannot be changed.
    """
    family = family_for(model)
    refuse_unturnable(family, end - start)
    ids, inputs = torch.cat((look.ids[:, :start], look.ids[:, end:]), dim=1), inputs_of(pictures)
    back = end - start
    before, behind = positions_of(model, look.ids, look.inputs), positions_of(model, ids, inputs)
    if before is not None and behind is not None and end < look.tokens:
        back = int(before[0, 0, end] - behind[0, 0, start])  # how far the first later column moves, in positions
    cache = copy_of(look.cache)
    with torch.inference_mode():
        for index, layer in enumerate(cache.layers):
            if not isinstance(layer, DummyLayer) and layer.is_initialized:
                turn = partial(turn_back, family, index) if turns(attention_of(family.layers[index])) else None
                pruned_layer(cache, index).forget(start, end, back, turn)
    return replace(look, ids=ids, inputs=inputs, cache=compact(cache))


def without(
    loaded: Loaded, pictures: tuple[Seen, ...], place: int, conversation: Conversation
) -> tuple[int, int, tuple[Seen, ...]]:
    """Return the columns [start, end) that leave with one entry, and the entries that are left.

    Ids [text, I, I, more, J, J] without I, where the conversation that is left begins "text more": 1, 3.

    Args:
        loaded: The model and its processor.
        pictures: All entries.
        place: Index of the entry that leaves.
        conversation: The conversation that is left.

    Raises:
        UnsupportedError: If the ids of that conversation are not the look's without some consecutive columns.
    """
    offset = sum(seen.columns for seen in pictures[:place])
    gone = pictures[place]
    if place + 1 == len(pictures):
        return offset, offset + gone.columns, pictures[:place]
    later = pictures[place + 1]
    shown = sum(len(seen.parts) for seen in pictures[:place])
    theirs = range(shown, shown + len(later.parts))
    before = conversation.split(theirs.stop)[0].without_media(theirs)
    with loaded.lock, quiet():
        lead = lead_of(loaded, before, later.parts, later.prompt.vision_tokens)
    ids = torch.cat((gone.ids[0], later.ids[0, : later.first]))
    start, count = in_common(lead, ids), len(ids) - len(lead)
    if count < 0 or not torch.equal(ids[start + count :], lead[start:]):
        raise UnsupportedError(
            f"Picture {place} cannot be forgotten: the tokens of the text around it change without it. Set with_texts "
            "to forget that text too, or look again at the others with vlm.look."
        )
    left = replace(later, ids=torch.cat((lead, later.ids[0, later.first :]))[None], first=len(lead))
    return offset + start, offset + start + count, (*pictures[:place], left, *pictures[place + 2 :])


def refuse_unturnable(family: Family, columns: int) -> None:
    """Refuse a decoder whose cached keys cannot move to other positions.

    Args:
        family: The model's family.
        columns: Columns of one image, to say how many images fit without forgetting.

    Raises:
        UnsupportedError: If they cannot.
    """
    why = None
    turnable = hasattr(family.text, "rotary_emb") and not follows_length(family)
    if family.recurrent:
        why = "has layers with a recurrent state, from which nothing can be removed"
    elif not turnable or any(rotation(attention_of(layer)) is None for layer in family.layers):
        why = "has no RoPE that can be rotated back"
    if why is not None:
        most = family.text.config.max_position_embeddings
        raise UnsupportedError(
            f"A {family.model.config.model_type!r} cannot forget pictures: it {why}. Its {most:,} positions hold "
            f"{most // columns:,} pictures of {columns:,} columns: leave memory out, and start a new look after these."
        )


def turn_back(family: Family, index: int, keys: Tensor, positions: int) -> Tensor:
    """Move keys of a decoder layer to earlier positions.

    RoPE adds angles: rotating keys of position p by −n gives those of position p − n. Some tables also scale (YaRN).
    The keys are already scaled, so cos and sin are normalised to length 1.

    Args:
        family: The model's family.
        index: The decoder layer.
        keys: (samples, heads, slots, head size). The rotation is computed in float32.
        positions: How many positions to move, n.
    """
    exact = keys.float()
    axes = 3 if hasattr(family.core, "get_rope_index") else 0
    ids = torch.full((1, 1), -positions, device=keys.device)
    cos, sin = family.rotary(index, exact, ids.expand(axes, 1, 1) if axes else ids)
    length = (cos.square() + sin.square()).sqrt()
    rotate = rotation(attention_of(family.layers[index]))
    assert rotate is not None
    return rotate(exact, exact, cos / length, sin / length)[1].to(keys.dtype)
