"""Batches: samples whose tensors fit together, padded on the left."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from foveate._transformers import PreTrainedModel

T = TypeVar("T")
Sample = Mapping[str, Tensor]


def batches(entries: Iterable[T], size: int, inputs_of: Callable[[T], Sample]) -> Iterator[list[T]]:
    """Put samples together that can share a batch: tensors that fit, lengths as close as can be.

    Args:
        entries: Whatever has a sample.
        size: Most samples a batch.
        inputs_of: The tensors of an entry, batch 1.
    """
    groups: dict[object, list[T]] = {}
    for entry in entries:
        groups.setdefault(_shapes(inputs_of(entry)), []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: inputs_of(entry)["input_ids"].shape[1])
        yield from parts(group, size)


def parts(things: Sequence[T], size: int) -> Iterator[list[T]]:
    """The things in order, at most `size` at a time."""
    for start in range(0, len(things), size):
        yield list(things[start : start + size])


def _shapes(inputs: Sample) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What must be equal for tensors to be joined: all but the first dimension, and but the text's length."""
    text = inputs["input_ids"].shape
    shapes = []
    for name in sorted(inputs):
        shape = inputs[name].shape
        shapes.append((name, () if shape == text else tuple(shape[1:])))
    return tuple(shapes)


def collate(samples: Sequence[Sample], pad: int) -> dict[str, Tensor]:
    """A batch of samples (batch 1 each): their text padded on the left with `pad`, all else one behind the other."""
    if len(samples) == 1:
        return dict(samples[0])
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    return {name: _joined(name, samples, longest, pad) for name in samples[0]}


def _joined(name: str, samples: Sequence[Sample], longest: int, pad: int) -> Tensor:
    values = [sample[name] for sample in samples]
    if values[0].shape != samples[0]["input_ids"].shape:
        return torch.cat(values)
    fill = pad if name == "input_ids" else 0
    padded = [torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values]
    return torch.cat(padded)


def pad_id(model: PreTrainedModel) -> int:
    """What a prompt is padded with."""
    return model.generation_config.pad_token_id or 0


def without_padding(model: PreTrainedModel, ids: Tensor) -> tuple[int, ...]:
    """The new ids of one sample, (new,) int64, up to the one that ends it, which is among them."""
    ends = ends_of(model)
    tokens: list[int] = ids.tolist()
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def ends_of(model: PreTrainedModel) -> set[int]:
    """Ids that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    if isinstance(ends, list):
        return set(ends)
    return {ends}
