"""A look: the prompt up to its last picture, run once. What is left of it serves any number of questions.

A causal decoder computes what stands before a question without seeing it, so its keys and values are the same for every
question. `resumed` gives `generate` a copy of them, and the whole prompt's ids.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import Cache, PreTrainedModel, cache_in, with_cache
from foveate.ask.generation import pad_id
from foveate.ask.prompt import collate, is_vision
from foveate.contract.follow import cached_layers, in_order, reads_text
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.engine.copies import copy_of, nbytes, settle
from foveate.engine.session import drop_or_not
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.naming import method_of, name_of
from foveate.registry import family_for, methods

Inputs = Mapping[str, Tensor]

MARKS = 64
"""Numbers of a tensor that are compared before all of it is."""
ADAPTERS = ("active_adapter", "disable_adapters", "merged_adapters", "scaling")
"""What says which adapters a layer of PEFT's computes with."""


@dataclass(frozen=True, eq=False)
class Look:
    """A prompt's beginning, run once.

    Attributes:
        ids: Its token ids, (1, tokens) int64, vision placeholders included.
        inputs: What else belongs to it, by name, as the processor made it: grids and sizes. Of pixels only the shape is
            left (on torch's meta device).
        cache: Keys, values and states, as the method left them. Nothing changes it: questions go on from copies.
        trace: What was dropped.
        weights: Of the model that looked, where these may change before a question comes; see `weights_of`.
    """

    ids: Tensor
    inputs: Inputs
    cache: Cache
    trace: Trace = field(default_factory=Trace)
    weights: object = None

    @property
    def tokens(self) -> int:
        """Tokens that every prompt begins with."""
        return self.ids.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all that the cache holds."""
        return nbytes(self.cache)


# -- what can be looked at ----------------------------------------------------------------------------------------


def can_share(model: PreTrainedModel, method: Method | None) -> bool:
    """Whether questions about one picture may share its prefill; see `refuse_unshareable`."""
    return _why_not(family_for(model), method) is None


def refuse_unshareable(model: PreTrainedModel, method: Method | None) -> None:
    """Refuse a look whose rows would be others with another question behind them.

    Raises:
        UnsupportedError: If the family's prompts are seen both ways, the question decides what is dropped, or caches
            are cut once the question has been read.
    """
    family = family_for(model)
    reason = _why_not(family, method)
    if reason is None:
        return
    if family.shares_prefix:
        depth = len(family.layers)
        serving = [name for name, kind in sorted(methods().items()) if _serves(kind, depth)]
        reason = f"{reason}, so it cannot look before it is asked. Use one that can: {', '.join(serving)}."
    raise UnsupportedError(reason)


def _why_not(family: Family, method: Method | None) -> str | None:
    """Why there is no look; None if there is."""
    if not family.shares_prefix:
        why = "the question changes what stands before it"
        if family.gathers:
            why = "whether the question changes what stands before it is not known"
        return f"A {family.model.config.model_type!r} cannot look before it is asked: {why}. Ask with vlm.ask."
    if method is None or (need := _waits(method, len(family.layers))) is None:
        return None
    return f"{name_of(method)} {need}"


def _waits(method: Method, depth: int) -> str | None:
    """What a method needs a question for; None if it needs none."""
    stages = in_order(method.stages(Shape(depth)))
    if reads_text(stages):
        return "reads the question"
    if cached_layers(stages):
        return "cuts caches that the question still sees whole"
    return None


def _serves(kind: type[Method], depth: int) -> bool:
    """Whether a method looks, at the budget that its name has."""
    try:
        return kind().open and _waits(method_of(kind.name), depth) is None
    except (FoveateError, TypeError):
        return False


# -- looking ------------------------------------------------------------------------------------------------------


def look_at(model: PreTrainedModel, inputs: Inputs, method: Method | None = None, cuda_graphs: bool = False) -> Look:
    """Run a prompt up to and with its last picture.

    Args:
        model: Of transformers, in no context.
        inputs: What the processor made of the prompt, batch 1, on the model's device.
        method: What drops, with its budget; None for the untouched model.
        cuda_graphs: Run it as CUDA graphs; see `foveate.drop`.

    Raises:
        UnsupportedError: If another question would give other rows.
    """
    refuse_unshareable(model, method)
    begun = collate([beginning(model, inputs)], pad_id(model))
    with drop_or_not(model, method, cuda_graphs) as trace:
        cache = prefill(model, begun)
    return Look(begun["input_ids"], without_pixels(begun), settle(cache), trace)


def without_pixels(inputs: Inputs) -> dict[str, Tensor]:
    """What belongs to a prompt's ids; of pixels the shape, which says how many pictures a tower encoded."""
    kept = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    return kept | {name: value.to("meta") for name, value in kept.items() if name.startswith("pixel_values")}


def beginning(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """A prompt up to and with its last picture."""
    text = inputs["input_ids"].shape
    end = end_of_pictures(model, inputs["input_ids"][0])
    return {name: value[:, :end] if value.shape == text else value for name, value in inputs.items()}


def end_of_pictures(model: PreTrainedModel, ids: Tensor) -> int:
    """How many of a prompt's (tokens,) ids are up to and with its last picture; one at least comes behind them."""
    last = int(is_vision(model.config, ids).nonzero()[-1])
    return min(last + 1 + family_for(model).closing_tokens, len(ids) - 1)


def prefill(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Cache:
    """Run a prompt, and give its cache."""
    with torch.inference_mode():
        return cache_in(model(**inputs, use_cache=True, logits_to_keep=1))


def watch(look: Look, model: PreTrainedModel) -> Look:
    """A look that is refused once the model's weights have changed."""
    return replace(look, weights=weights_of(model))


def weights_of(model: PreTrainedModel) -> list[object]:
    """Something that changes when weights are replaced, moved or written, or other adapters of PEFT count.

    It reads no values, so what is written through `.data` goes unnoticed but for PEFT's merging.
    """
    marks: list[object] = []
    for weight in model.parameters():
        version = 0 if weight.is_inference() else weight._version
        marks.append((id(weight), weight.data_ptr(), version, weight.dtype))
    return marks + adapters_of(model)


def adapters_of(model: PreTrainedModel) -> list[str]:
    """Which adapters of PEFT's count, layer by layer."""
    layers = (module for module in model.modules() if hasattr(module, "merged_adapters"))
    return [repr([getattr(layer, name, None) for name in ADAPTERS]) for layer in layers]


def of_one_beginning(model: PreTrainedModel, prompts: Sequence[Inputs]) -> list[list[int]]:
    """Which prompts are about the same pictures behind the same text: their places, in groups, in the prompts' order.

    Args:
        model: Of transformers.
        prompts: Batch 1 each. One without pictures is a group of its own.
    """
    groups: list[list[int]] = []
    sketches: dict[object, list[tuple[Mapping[str, Tensor], list[int]]]] = {}
    for place, prompt in enumerate(prompts):
        if not is_vision(model.config, prompt["input_ids"]).any():
            groups.append([place])
            continue
        begun = beginning(model, prompt)
        begun.pop("attention_mask", None)
        alike = sketches.setdefault(_sketch(begun), [])
        group = next((group for other, group in alike if _equal(begun, other)), None)
        if group is None:
            groups.append(group := [])
            alike.append((begun, group))
        group.append(place)
    return groups


def _sketch(begun: Mapping[str, Tensor]) -> object:
    """Something that prompts share which begin alike, and few others: all ids, and some numbers of each tensor."""
    marks = []
    for name, value in sorted(begun.items()):
        step = 1
        if name != "input_ids":
            step = max(1, value.numel() // MARKS)
        marks.append((name, value.shape, tuple(value.flatten()[::step].tolist())))
    return tuple(marks)


def _equal(begun: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in begun.items())


# -- going on -----------------------------------------------------------------------------------------------------


def together(model: PreTrainedModel, look: Look, prompts: Sequence[Inputs]) -> list[list[int]]:
    """Which prompts go on in one batch: their places, in groups of like lengths.

    Prompts of one length always may. Others are padded between picture and question, which is right where every layer
    sees all tokens. A window counts the padding, and a recurrent state fades in it.
    """
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    places = sorted(range(len(prompts)), key=lambda place: lengths[place])
    if family_for(model).recurrent or any(getattr(layer, "is_sliding", False) for layer in look.cache.layers):
        return [[place for place in places if lengths[place] == length] for length in sorted(set(lengths))]
    return [places]


def resume(model: PreTrainedModel, look: Look, prompts: Sequence[Inputs], beams: int = 1) -> dict[str, Any]:
    """What `generate` is given for prompts that go on from a look.

    Args:
        model: The one that looked.
        look: What it saw.
        prompts: Whole prompts, batch 1 each, of one group of `together`.
        beams: Of a beam search.

    Raises:
        SettingError: If a prompt does not begin with what was looked at.
    """
    rows = [prompt["input_ids"] for prompt in prompts]
    if not all(row.shape[1] > look.tokens and torch.equal(row[:, : look.tokens], look.ids) for row in rows):
        raise SettingError("This prompt does not go on from what was looked at: its ids begin in another way.")
    longest = max(row.shape[1] for row in rows)
    ids = look.ids.new_full((len(rows), longest), pad_id(model))
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):  # the padding stands between the picture and the question
        start = longest - (row.shape[1] - look.tokens)
        ids[place, : look.tokens], ids[place, start:] = look.ids[0], row[0, look.tokens :]
        mask[place, : look.tokens], mask[place, start:] = 1, 1
    core = family_for(model).core
    placed: dict[str, Tensor] = {}
    if hasattr(core, "get_rope_index"):
        # How far text positions lag behind is of the last prompt that ran. Without it the model works it out anew from
        # the whole prompt, also behind a video, where the beginning alone does not say it.
        core.rope_deltas = None
        placed = _of_positions(core, look, len(rows), longest)
    cache = copy_of(look.cache, len(rows) * beams)
    return {"input_ids": ids, "attention_mask": mask, **with_cache(cache), **placed}


def _of_positions(core: Any, look: Look, samples: int, columns: int) -> dict[str, Tensor]:
    """What M-RoPE places tokens by: grids, and which tokens are of pictures."""
    placed = {}
    for name in inspect.signature(core.get_rope_index).parameters:
        if name not in look.inputs:
            continue
        value = look.inputs[name]
        if value.shape == look.ids.shape:
            value = torch.nn.functional.pad(value, (0, columns - look.tokens))
        placed[name] = value.repeat(samples, *[1] * (value.dim() - 1))
    return placed
