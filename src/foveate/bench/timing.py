"""Time ratios one can trust: interleaved runs in one process, the median ratio of a round, an interval."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, TypeVar

from foveate.plain.stats import median_of

LEAST_FOR_95 = 6
"""Rounds from which on a median has a 95 % interval at all: the range of n values misses it in 2 of 2**n cases."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one run's time compares with another's.

    Attributes:
        median: Median over rounds of run time over base time; below 1 is faster than the base.
        low, high: 95 % bootstrap interval of that median; with fewer than `LEAST_FOR_95` rounds their range.
        rounds: How many rounds there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    @property
    def holds_one(self) -> bool:
        """Whether 1 lies in the interval; if it does not where a run is compared with itself, the machine is noisy."""
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
    """Call every run once a round, in an order drawn for each round, and yield what they answered, by name.

    A round of warm-up comes before, whose answers are not yielded; `after` is called after every round, after that too.
    A machine's speed drifts within a round: runs that `beside` gives the same name to come one right after the other,
    in an order drawn too, so that their ratio has little of it.
    """
    draw = Random(seed)
    groups: dict[str, list[str]] = {}
    for name in runs:
        neighbour = (beside or {}).get(name, name)
        groups.setdefault(neighbour, []).append(name)
    for number in range(count + 1):
        answers: dict[str, T] = {}
        for group in draw.sample(list(groups.values()), len(groups)):
            for name in draw.sample(group, len(group)):
                answers[name] = runs[name]()
        after()
        if number:
            yield {name: answers[name] for name in runs}


def interval_words(rounds: int) -> str:
    """What the interval of a ratio of so many rounds is."""
    if rounds < LEAST_FOR_95:
        return f"range (a 95 % interval takes {LEAST_FOR_95} rounds or more)"
    return "95 % bootstrap interval"


def ratio(run: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio of two interleaved series of times, round by round."""
    middle = median_of([time / other for time, other in zip(run, base, strict=True)])
    return Ratio(middle.value, middle.low, middle.high, len(run))
