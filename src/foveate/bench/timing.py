"""Time ratios: runs interleaved in one process, the median of the rounds' ratios, and its interval."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, TypeVar

from foveate.core.tensors import alike
from foveate.plain.stats import median_of

LEAST_FOR_95 = 6
"""Fewest rounds for a 95 % interval of the median: the range of n values misses it with probability 2 / 2**n."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of a run relative to that of a base.

    Attributes:
        median: Median over rounds of run time / base time. Below 1 is faster than the base.
        low, high: 95 % bootstrap interval of the median; with fewer than `LEAST_FOR_95` rounds, the range.
        rounds: Number of rounds.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def holds_one(self) -> bool:
        """True if the interval contains 1. If it does not when a run is compared with itself, the machine is noisy."""
        return self.low <= 1 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)


def rounds(
    runs: Mapping[str, Callable[[], T]],
    count: int,
    seed: int = 0,
    after: Callable[[], object] = lambda: None,
    beside: Mapping[str, str] | None = None,
) -> Iterator[dict[str, T]]:
    """Call every run once per round, in random order, and yield the results of each round by name.

    The first round is a warm-up, whose results are not yielded.

    Args:
        runs: Functions to call, by name.
        count: Number of rounds after the warm-up.
        seed: Seed of the order.
        after: Called after every round, including the warm-up.
        beside: For a run, the name of the one beside which it is called. These runs follow one another directly, in
            random order, so that the machine's drift within a round hardly affects their ratio.
    """
    draw = Random(seed)
    names = list(runs)
    groups = alike((beside or {}).get(name, name) for name in names)
    for number in range(count + 1):
        answers: dict[str, T] = {}
        for group in draw.sample(groups, len(groups)):
            for name in [names[place] for place in draw.sample(group, len(group))]:
                answers[name] = runs[name]()
        after()
        if number:
            yield {name: answers[name] for name in runs}


def interval_words(rounds: int) -> str:
    """The name of a ratio's interval for this number of rounds."""
    if rounds < LEAST_FOR_95:
        return f"range (a 95 % interval takes {LEAST_FOR_95} rounds or more)"
    return "95 % bootstrap interval"


def ratio(run: Sequence[float], base: Sequence[float]) -> Ratio:
    """The median ratio of two interleaved series of times, paired by round."""
    middle = median_of([time / other for time, other in zip(run, base, strict=True)])
    return Ratio(middle.value, middle.low, middle.high, len(run))
