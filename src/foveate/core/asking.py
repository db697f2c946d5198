"""Numbers that only the device knows, read for all images of a call together."""

from collections.abc import Generator, Iterable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["Asking", "answers"]

T = TypeVar("T")
Asking: TypeAlias = T | Generator[Tensor, int, T]
"""A value; or a generator that yields integers which are still on the device, one at a time, is sent what each is, and
returns the value."""


def answers(asking: Iterable[Asking[T]]) -> list[T]:
    """What each of them comes to: the host waits for the device once for all that ask, and not for each."""
    found: list[T | None] = []
    asked: list[tuple[int, Generator[Tensor, int, T], Tensor]] = []

    def go_on(index: int, one: Generator[Tensor, int, T], number: int | None) -> None:
        try:
            asked.append((index, one, one.send(number)))  # type: ignore[arg-type]  # None starts it
        except StopIteration as end:
            found[index] = end.value

    for index, one in enumerate(asking):
        found.append(None)
        if isinstance(one, Generator):
            go_on(index, one, None)
        else:
            found[index] = one
    while asked:
        waiting, asked = asked, []
        numbers = torch.stack([number for _, _, number in waiting]).tolist()
        for (index, generator, _), number in zip(waiting, numbers, strict=True):
            go_on(index, generator, number)
    return found  # type: ignore[return-value]
