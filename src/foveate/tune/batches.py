"""Pictures that a setting is tried on at once, as one batch."""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from foveate.contract.method import Method
from foveate.tune.forcing import beginning, looks
from foveate.tune.samples import About

__all__ = ["batched"]

TOKENS = 4096
"""Vision tokens of a batch at most: with more, one picture keeps a processor busy."""


def batched(model: Any, method: Method, pictures: Sequence[About], most: int) -> Iterator[list[About]]:
    """Neighbours whose prompts begin alike, at most `most` and so many tokens in a batch: always the same ones."""
    batch: list[About] = []
    tokens = 0
    for about in pictures:
        size = _tokens(about, looks(model, method, about.samples))
        if batch and (len(batch) == most or tokens + size > TOKENS or _kind(model, about) != _kind(model, batch[0])):
            yield batch
            batch, tokens = [], 0
        batch.append(about)
        tokens += size
    if batch:
        yield batch


def _tokens(about: About, once: bool) -> int:
    """Vision tokens that are run: of the picture once, or with every question."""
    runs = 1 if once else len(about.samples)
    return runs * about.samples[0].vision_tokens


def _kind(model: Any, about: About) -> Hashable:
    """What must be equal in a batch: the prompt's ids up to and with the pictures, and the shapes of all else."""
    inputs = about.samples[0].inputs
    text = inputs["input_ids"].shape
    shapes = [(name, tuple(value.shape)) for name, value in inputs.items() if value.shape != text]
    return beginning(model, about.samples[0]), tuple(sorted(shapes))
