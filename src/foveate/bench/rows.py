"""A candidate of a finished run beside the untouched model: ratios with intervals, and what arithmetic says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from foveate.bench.held import Held
from foveate.bench.run import AGAIN, EAGER, FULL, KEEP_ALL, Candidate, Session
from foveate.bench.timing import Ratio, ratio
from foveate.cost import Cost

__all__ = ["Row", "rows_of"]

Times = Mapping[str, Sequence[float]]
"""Seconds of each round, by part."""


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate beside the untouched model.

    Attributes:
        candidate: What ran.
        held: What it processes and holds.
        batch: Samples a run.
        times: Of each part, seconds of every finished round.
        ratios: Of each part, its time over the untouched model's of the same round.
        against: The same over the time of random at the same schedule; empty where there is none.
        over_bare: The same over the time of the layers alone on as many rows, of the parts that these have.
        flops: Of "prefill", "ttft" and "whole", its FLOPs over the untouched model's, scoring left out: what time
            would be were it all matrix products.
        scoring: The method's own arithmetic, as a share of its prefill's.
        kv_counted: What the arithmetic says the whole batch's cache holds, bytes; None for bare layers.
        peak_counted: The same of the most bytes at once; None also where it is not known, as under eager attention.
        cost: What arithmetic says one sample costs.
    """

    candidate: Candidate
    held: Held
    batch: int
    times: Times = field(repr=False)
    ratios: dict[str, Ratio]
    against: dict[str, Ratio]
    over_bare: dict[str, Ratio]
    flops: dict[str, float]
    scoring: float
    kv_counted: int | None
    peak_counted: int | None
    cost: Cost = field(repr=False)

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def is_untouched(self) -> bool:
        """Whether it is the base of all ratios."""
        return self.name == FULL

    @property
    def is_check(self) -> bool:
        """Whether nothing leaves in it: the untouched model again, and keep-all."""
        return self.name in (AGAIN, KEEP_ALL)

    @property
    def is_eager(self) -> bool:
        """Whether it is the row of eager attention."""
        return self.name == EAGER

    @property
    def is_bare(self) -> bool:
        """Whether it is of the layers alone: of these only times up to the first token are known."""
        return self.candidate.rows is not None

    @property
    def seconds(self) -> dict[str, float]:
        """Of each part, the median over rounds."""
        return {part: median(times) for part, times in self.times.items()}

    @property
    def items_per_second(self) -> float:
        """Samples a second, the whole call."""
        return self.batch / self.seconds["whole"]

    @property
    def tokens(self) -> float:
        """Mean vision tokens that a layer processes."""
        return sum(self.held.tokens) / len(self.held.tokens)

    @property
    def efficiency(self) -> Ratio | None:
        """The prefill's measured speed-up over the FLOP-theoretic one; 1 is the limit."""
        if "prefill" not in self.ratios or self.candidate.kernel is not None:
            return None
        speed_up = self.ratios["prefill"].inverse()
        limit = 1 / self.flops["prefill"]
        return Ratio(speed_up.median / limit, speed_up.low / limit, speed_up.high / limit, speed_up.rounds)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, with the time of every round."""
        candidate, held = self.candidate, self.held
        return {
            "name": self.name,
            "setting": None if candidate.method is None else candidate.method.to_dict(),
            "kernel": candidate.kernel,
            "control": candidate.control,
            "bare": candidate.bare,
            "tokens": list(held.tokens),
            "retention": held.retention,
            "peak_bytes": None if self.is_bare else held.peak,
            "peak_bytes_counted": self.peak_counted,
            "kv_bytes": None if self.is_bare else held.kv_bytes,
            "kv_bytes_counted": self.kv_counted,
            "flops": self.flops,
            "scoring": self.scoring,
            "seconds": self.seconds,
            "ratios": _as_plain(self.ratios),
            "over_random": _as_plain(self.against),
            "over_bare": _as_plain(self.over_bare),
            "efficiency": None if self.efficiency is None else self.efficiency.to_dict(),
            "times": {part: list(times) for part, times in self.times.items()},
        }


def rows_of(session: Session) -> list[Row]:
    """A row for each candidate that ran, of the rounds that are finished."""
    reader = _Reader(session)
    return [
        reader.row(candidate, candidate.held)
        for candidate in session.candidates.values()
        if candidate.held is not None and not candidate.failed
    ]


class _Reader:
    """Reads rows off a session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        untouched = session.candidates[FULL]
        assert untouched.held is not None  # without it there is no run
        self._untouched = self._cost(untouched, untouched.held)
        self._base = self._times(FULL)

    def row(self, candidate: Candidate, held: Held) -> Row:
        cost = self._cost(candidate, held)
        times = self._times(candidate.name)
        batch = self._session.workload.batch
        kv, peak = None, None
        if candidate.rows is None:
            kv = cost.kv_bytes * batch
            if cost.peak_bytes is not None and self._kernel(candidate) != "eager":
                peak = cost.peak_bytes * batch
        return Row(
            candidate=candidate,
            held=held,
            batch=batch,
            times=times,
            ratios=_ratios(times, self._base),
            against=_ratios(times, self._times(candidate.control)),
            over_bare=_ratios(times, self._times(candidate.bare)),
            flops=self._flops(candidate, cost),
            scoring=cost.scoring_flops / cost.prefill_flops,
            kv_counted=kv,
            peak_counted=peak,
            cost=cost,
        )

    def _times(self, name: str | None) -> dict[str, list[float]]:
        """Seconds of each part in every finished round; nothing for no candidate."""
        rounds = self._session.times.get(name or "", [])[: self._session.finished]
        if not rounds:
            return {}
        return {part: [seconds[part] for seconds in rounds] for part in rounds[0]}

    def _kernel(self, candidate: Candidate) -> str:
        if candidate.kernel is not None:
            return candidate.kernel
        return str(self._session.model.config.get_text_config()._attn_implementation)

    def _cost(self, candidate: Candidate, held: Held) -> Cost:
        session = self._session
        return session.workload.kernel_cost(session.model, self._kernel(candidate), candidate.method, held.tokens)

    def _flops(self, candidate: Candidate, cost: Cost) -> dict[str, float]:
        """FLOPs over the untouched model's; no call can go on from bare layers."""
        parts = ["prefill", "ttft"]
        if candidate.rows is None:
            parts.append("whole")
        new_tokens = self._session.new_tokens
        return {part: _part(cost, part, new_tokens) / _part(self._untouched, part, new_tokens) for part in parts}


def _part(cost: Cost, part: str, new_tokens: int) -> int:
    """FLOPs of a part, the method's own arithmetic left out."""
    if part == "prefill":
        return cost.prefill_flops
    first = cost.total_flops - cost.scoring_flops
    if part == "ttft":
        return first
    return first + (new_tokens - 1) * cost.decode_flops


def _ratios(times: Times, base: Times) -> dict[str, Ratio]:
    """Of the parts that both have."""
    return {part: ratio(times[part], base[part]) for part in times if part in base}


def _as_plain(ratios: Mapping[str, Ratio]) -> dict[str, Any]:
    return {part: value.to_dict() for part, value in ratios.items()}
