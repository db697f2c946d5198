"""Which rows are done: a few ranges in the place of a million numbers."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

__all__ = ["Ranges", "runs_of"]

Range = tuple[int, int]


class Ranges:
    """A set of row numbers that remembers only where they begin and end.

    Args:
        ranges: First and last numbers, both included.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        self.overlap: Range | None = None
        """The first range that another one meets; None where none does."""
        for first, last in sorted(ranges):
            self._append(first, last)

    def _append(self, first: int, last: int) -> None:
        if self._last and first <= self._last[-1] and self.overlap is None:
            self.overlap = first, last
        if self._last and first <= self._last[-1] + 1:
            self._last[-1] = max(last, self._last[-1])
        else:
            self._first.append(first)
            self._last.append(last)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._first, number) - 1
        return place >= 0 and number <= self._last[place]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self)

    def __iter__(self) -> Iterator[Range]:
        return iter(zip(self._first, self._last, strict=True))


def runs_of(numbers: Iterable[int]) -> list[Range]:
    """The ranges that these numbers make: 3, 4, 5, 9 gives (3, 5) and (9, 9)."""
    return list(Ranges((number, number) for number in set(numbers)))
