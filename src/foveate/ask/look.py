"""`Look`: the prompt up to its last image, prefilled once and shared by any number of questions.

A causal decoder computes the tokens before a question without reading it, so their keys and values are the same for
every question. `resume` gives `generate` a copy of them with the whole prompt's ids.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import Cache, PreTrainedModel, cache_in, with_cache
from foveate.ask.generation import generate, pad_id
from foveate.ask.loaded import Loaded
from foveate.ask.prompt import Prompt, begun_by, collate, is_vision
from foveate.contract.follow import cached_layers, reads_text
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.engine.copies import compact, copy_of, nbytes
from foveate.engine.doors import drop_or_not
from foveate.engine.state import State, own_hooks, state_of
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.naming import method_of, name_of
from foveate.registry import family_for, methods

Inputs = Mapping[str, Tensor]

MARKS = 64
"""Number of values of a tensor that are compared first, before whole tensors."""


@dataclass(frozen=True, eq=False)
class Look:
    """The beginning of a prompt, prefilled once.

    Attributes:
        ids: Its token ids, (1, tokens) int64, including vision placeholders.
        inputs: The processor's other inputs by name, such as grids and sizes. Pixels are kept as their shape only (a
            tensor on torch's meta device). Empty for a text without images; see `look_at_system`.
        cache: Keys, values and states after dropping. It never changes: questions continue from copies.
        trace: The tokens dropped at each stage.
        state: State of the model, if it may change before a question comes.
    """

    ids: Tensor
    inputs: Inputs
    cache: Cache
    trace: Trace = field(default_factory=Trace)
    state: State | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens that every prompt begins with."""
        return self.ids.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the cache."""
        return nbytes(self.cache)


# -- what can be looked at ----------------------------------------------------------------------------------------


def can_share(model: PreTrainedModel, method: Method | None) -> bool:
    """Return whether questions about one image can share its prefill; see `refuse_unshareable`."""
    return _why_not(family_for(model), method) is None


def refuse_unshareable(model: PreTrainedModel, method: Method | None) -> None:
    """Refuse a look if its rows would depend on the question after them.

    Raises:
        UnsupportedError: If the family's attention over the prompt is bidirectional, the method reads the question, or
            it cuts the cache after the question has been read.
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
    """Return why the model cannot look with this method, or None if it can."""
    if not family.shares_prefix:
        why = "the question changes the tokens before it"
        if family.gathers:
            why = "foveate does not know whether the question changes the tokens before it"
        return f"A {family.model.config.model_type!r} cannot look before it is asked: {why}. Ask with vlm.ask."
    if method is None or (need := _waits(method, len(family.layers))) is None:
        return None
    return f"{name_of(method)} {need}"


def _waits(method: Method, depth: int) -> str | None:
    """Return why a method needs the question, or None if it does not."""
    stages = method.placed(Shape(depth))
    if reads_text(stages):
        return "reads the question"
    if cached_layers(stages):
        return "cuts the cache only after the question has read all of it"
    return None


def _serves(kind: type[Method], depth: int) -> bool:
    """Return whether a method can look at its default budget."""
    try:
        return kind().open and _waits(method_of(kind.name), depth) is None
    except (FoveateError, TypeError):
        return False


# -- looking ------------------------------------------------------------------------------------------------------


def look_at(
    model: PreTrainedModel,
    inputs: Inputs,
    method: Method | None = None,
    cuda_graphs: bool = False,
    system: Look | None = None,
) -> Look:
    """Prefill a prompt up to and including its last image.

    Args:
        model: A transformers model without an active `drop`.
        inputs: The processor's output for the prompt, batch 1, on the model's device.
        method: The method with its budget; None for the untouched model.
        cuda_graphs: Run the prefill as CUDA graphs; see `foveate.drop`.
        system: The text in front, prefilled. A prompt that does not begin with its ids runs from its start.

    Raises:
        UnsupportedError: If the rows would depend on the question.
    """
    refuse_unshareable(model, method)
    begun = beginning(model, inputs)
    with drop_or_not(model, method, cuda_graphs) as trace:
        if system is not None and begins(begun, system):
            cache = cache_in(generate(model, resume(model, system, [begun]), 1))
        else:
            cache = prefill(model, begun)
    return Look(begun["input_ids"], without_pixels(begun), compact(cache), trace)


def look_at_system(loaded: Loaded, prompt: Prompt, method: Method | None) -> Look | None:
    """Prefill the text of `system=` that a prompt begins with. The model keeps the last one, for all prompts with it.

    Returns:
        None without such a text, or if rows after it would differ from those of a whole prompt: if images attend in
        both directions, RoPE follows the length, or the method compares with all rows of a prompt.

    Raises:
        SessionError: If `foveate.drop` is active on the model.
        UnsupportedError: As in `begun_by`.
    """
    model, family = loaded.model, family_for(loaded.model)
    if prompt.system is None or not (family.shares_prefix and family.grows) or follows_length(family):
        return None
    stages = () if method is None else method.placed(Shape(len(family.layers)))
    if any(getattr(signal, "among", None) == "all" for stage in stages for signal in stage.reads):
        return None
    with loaded.lock:
        look: Look | None = loaded.system
        ids = begun_by(loaded, prompt.system)
        goes_on = look is not None and torch.equal(look.ids, ids) and look.state == state_of(model)
        if look is None or not goes_on or own_hooks(model):  # what a hook reads from elsewhere cannot be compared
            loaded.system = None  # free the last one first
            with drop_or_not(model, None):
                cache = prefill(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            loaded.system = look = watch(Look(ids, {}, compact(cache)), model)
    return look


def follows_length(family: Family) -> bool:
    """Return whether the decoder's RoPE changes with the length of the prompt, so that keys belong to one length."""
    kinds = getattr(getattr(family.text, "rotary_emb", None), "rope_type", "default")
    return not {"dynamic", "longrope"}.isdisjoint(kinds.values() if isinstance(kinds, dict) else [kinds])


def without_pixels(inputs: Inputs) -> dict[str, Tensor]:
    """Return the inputs besides ids and mask, with pixels moved to the meta device.

    The pixels' shape is kept: it gives the number of images that the tower encoded.
    """
    kept = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    return kept | {name: value.to("meta") for name, value in kept.items() if name.startswith("pixel_values")}


def beginning(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """Cut a prompt's inputs after its last image. Only tensors of the ids' shape (1, tokens) are cut."""
    text = inputs["input_ids"].shape
    end = end_of_pictures(model, inputs["input_ids"][0])
    return {name: value[:, :end] if value.shape == text else value for name, value in inputs.items()}


def end_of_pictures(model: PreTrainedModel, ids: Tensor) -> int:
    """Return how many of a prompt's (tokens,) ids reach to the end of its last image. At least one id comes after.

    For ids [text, image, image, closing, text] and 1 closing token: 4.
    """
    last = int(is_vision(model.config, ids).nonzero()[-1])
    return min(last + 1 + family_for(model).closing_tokens, len(ids) - 1)


def prefill(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Cache:
    """Prefill a prompt and return its cache."""
    with torch.inference_mode():
        return cache_in(model(**inputs, use_cache=True, logits_to_keep=1))


def watch(look: Look, model: PreTrainedModel) -> Look:
    """Return a look that is refused once the model has changed."""
    return replace(look, state=state_of(model))


def of_one_beginning(model: PreTrainedModel, prompts: Sequence[Inputs]) -> list[list[int]]:
    """Group prompts that begin with the same text and images. Return the indices of each group, in order.

    Args:
        model: A transformers model.
        prompts: Batch 1 each. A prompt without images is a group by itself.
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
    """Return a hashable sketch of a beginning: all ids, and about `MARKS` values of each other tensor.

    Equal beginnings have equal sketches. Different beginnings rarely do; `_equal` decides.
    """
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
    """Group prompts that can continue from a look in one batch. Return the indices of each group.

    Prompts of equal length always can. Prompts of different lengths are padded between image and question, which is
    correct only if every layer attends to all tokens: padding would fill a sliding window and decay a recurrent state.
    """
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    places = sorted(range(len(prompts)), key=lambda place: lengths[place])
    if family_for(model).recurrent or any(getattr(layer, "is_sliding", False) for layer in look.cache.layers):
        return [[place for place in places if lengths[place] == length] for length in sorted(set(lengths))]
    return [places]


def resume(model: PreTrainedModel, look: Look, prompts: Sequence[Inputs], beams: int = 1) -> dict[str, Any]:
    """Return the arguments of `generate` for prompts that continue from a look.

    Args:
        model: The model that looked.
        look: The prefilled beginning.
        prompts: Whole prompts, batch 1 each, of one group of `together`.
        beams: Number of beams.

    Raises:
        SettingError: If a prompt does not begin with the look's ids.
    """
    if not all(begins(prompt, look) for prompt in prompts):
        raise SettingError(
            "This prompt does not continue what was looked at: begin with the same token ids, and add more."
        )
    # Padding goes between the look and what follows. Look [A, B], prompts [A, B, x] and [A, B, y, z]:
    # ids [[A, B, pad, x], [A, B, y, z]], mask [[1, 1, 0, 1], [1, 1, 1, 1]].
    names = ("input_ids", "attention_mask") if look.inputs else prompts[0]  # only a text is followed by images
    by_token = [name for name in names if prompts[0][name].shape == prompts[0]["input_ids"].shape]
    rests = [{name: prompt[name] for name in names} for prompt in prompts]
    for rest in rests:
        rest |= {name: rest[name][:, look.tokens :] for name in by_token}
    batch = collate(rests, pad_id(model))
    for name in by_token:
        begun = torch.cat([prompt[name][:, : look.tokens] for prompt in prompts])
        batch[name] = torch.cat((begun, batch[name]), dim=1)
    core = family_for(model).core
    if hasattr(core, "get_rope_index"):
        # rope_deltas (text position minus token index) is left over from the last prompt that ran. Clearing it makes
        # the model recompute it from the whole prompt. After a video the beginning alone does not determine it.
        core.rope_deltas = None
        batch |= _of_positions(core, look, *batch["input_ids"].shape)
    return batch | with_cache(copy_of(look.cache, len(prompts) * beams))


def begins(prompt: Inputs, look: Look) -> bool:
    """Return whether a prompt begins with a look's ids and has more."""
    ids = prompt["input_ids"]
    return ids.shape[1] > look.tokens and torch.equal(ids[:, : look.tokens], look.ids)


def _of_positions(core: Any, look: Look, samples: int, columns: int) -> dict[str, Tensor]:
    """Return the inputs from which M-RoPE computes positions: grids and token types, repeated for each sample.

    Per-token inputs are padded from (1, look tokens) to (1, columns) with 0, the type of text.
    """
    placed = {}
    for name in inspect.signature(core.get_rope_index).parameters:
        if name not in look.inputs:
            continue
        value = look.inputs[name]
        if value.shape == look.ids.shape:
            value = torch.nn.functional.pad(value, (0, columns - look.tokens))
        placed[name] = value.repeat(samples, *[1] * (value.dim() - 1))
    return placed
