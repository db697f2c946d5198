"""Numbers that only the device knows, read for all images of a call together."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["Asking", "answers"]

T = TypeVar("T")
Asking: TypeAlias = T | Generator[Tensor, int, T]
"""A value; or a generator that yields integers which are still on the device, one at a time, is sent what each is, and
returns the value."""


def answers(asking: Iterable[Asking[T]]) -> list[T]:
    """What each of them comes to: the host waits for the device once for all that ask, and not for each."""
    values: list[T | None] = []
    waiting: list[_Waiting[T]] = []
    for index, value in enumerate(asking):
        if isinstance(value, Generator):
            values.append(None)
            waiting.extend(_resumed(index, value, None, values))
        else:
            values.append(value)
    while waiting:
        numbers = torch.stack([asked.number for asked in waiting]).tolist()
        answered, waiting = waiting, []
        for asked, number in zip(answered, numbers, strict=True):
            waiting.extend(_resumed(asked.index, asked.generator, number, values))
    return values  # type: ignore[return-value]


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    """A generator, which of all it is, and the number it waits for."""

    index: int
    generator: Generator[Tensor, int, T]
    number: Tensor


def _resumed(
    index: int, generator: Generator[Tensor, int, T], number: int | None, values: list[T | None]
) -> list[_Waiting[T]]:
    """Send a generator its number, None to start it: it waits for the next, or its value is there."""
    try:
        return [_Waiting(index, generator, generator.send(number))]  # type: ignore[arg-type]
    except StopIteration as end:
        values[index] = end.value
        return []
