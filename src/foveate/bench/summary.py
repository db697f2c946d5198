"""What a run has found: ratios with intervals, beside the FLOP-theoretic ones and the controls."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from foveate.bench.run import AGAIN, FULL, Candidate, Session
from foveate.bench.timing import Ratio, ratio
from foveate.bench.workload import Workload
from foveate.cost import Cost
from foveate.methods.base import Method

__all__ = ["Row", "Summary", "kernel_cost", "summarise"]


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate beside the untouched model.

    Attributes:
        candidate: With what it holds.
        seconds: Of each part, the median over rounds.
        ratios: Of each part, its time over the untouched model's of the same round.
        against: The same over the time of random at the same schedule; empty where there is none.
        over_bare: The same over the time of the layers alone on as many rows, of the parts that these have.
        flops: Of "prefill", "ttft" and "whole", its FLOPs over the untouched model's, scoring left out: what time
            would be were it all matrix products.
        scoring: The method's own arithmetic, as a share of its prefill's.
        kv_counted: What the arithmetic says the whole batch's cache holds, bytes; None for bare layers.
        peak_counted: The same of the most bytes at once; None also where it is not known, as under eager attention.
    """

    candidate: Candidate
    seconds: dict[str, float]
    ratios: dict[str, Ratio]
    against: dict[str, Ratio]
    over_bare: dict[str, Ratio]
    flops: dict[str, float]
    scoring: float
    kv_counted: int | None
    peak_counted: int | None

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def is_bare(self) -> bool:
        """Whether it is of the layers alone: of these only times up to the first token are known."""
        return self.candidate.rows is not None

    @property
    def efficiency(self) -> Ratio | None:
        """The prefill's measured speed-up over the FLOP-theoretic one; 1 is the limit."""
        if "prefill" not in self.ratios or self.candidate.kernel is not None:
            return None
        found, limit = self.ratios["prefill"].inverse(), 1 / self.flops["prefill"]
        return Ratio(found.median / limit, found.low / limit, found.high / limit, found.rounds)

    def to_dict(self, times: Sequence[dict[str, float]]) -> dict[str, Any]:
        """Plain values, every single time among them."""
        one, held = self.candidate, self.candidate.held
        assert held is not None
        return {
            "name": one.name,
            "setting": None if one.method is None else one.method.to_dict(),
            "kernel": one.kernel,
            "control": one.control,
            "bare": one.bare,
            "tokens": list(held.tokens),
            "retention": held.retention,
            "peak_bytes": None if self.is_bare else held.peak,
            "peak_bytes_counted": self.peak_counted,
            "kv_bytes": None if self.is_bare else held.kv_bytes,
            "kv_bytes_counted": self.kv_counted,
            "flops": self.flops,
            "scoring": self.scoring,
            "seconds": self.seconds,
            "ratios": {part: found.to_dict() for part, found in self.ratios.items()},
            "over_random": {part: found.to_dict() for part, found in self.against.items()},
            "over_bare": {part: found.to_dict() for part, found in self.over_bare.items()},
            "efficiency": None if self.efficiency is None else self.efficiency.to_dict(),
            "times": {part: [found[part] for found in times] for part in self.seconds},
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows of a run, the untouched model first.

    Attributes:
        rows: Those that ran.
        failed: Why others did not, by name.
        batch: Samples a run.
        rounds: How many were finished.
    """

    rows: tuple[Row, ...]
    failed: dict[str, str]
    batch: int
    rounds: int

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def noisy(self) -> list[str]:
        """Parts in which the untouched model differs from itself: its interval does not hold 1."""
        ratios = self.row(AGAIN).ratios if self.rounds else {}
        return [part for part, found in ratios.items() if not found.low <= 1 <= found.high]

    def items_per_second(self, row: Row) -> float:
        """Samples a second, the whole call."""
        return self.batch / row.seconds["whole"]


def summarise(session: Session) -> Summary:
    """Every figure of the rounds that are finished."""
    times = session.times
    finished = session.finished
    base = session.candidates[FULL]
    whole, batch = _cost(session, base), session.workload.batch
    rows = []
    for one in session.candidates.values():
        if one.failed or one.held is None:
            continue
        mine = times.get(one.name, [])[:finished]
        parts = list(mine[0]) if mine else []
        series = {part: [found[part] for found in mine] for part in parts}
        cost, counted = _cost(session, one), one.rows is None
        control, alone = (times.get(name or "", [])[:finished] for name in (one.control, one.bare))
        peak = cost.peak_bytes if counted and _kernel(session, one) != "eager" else None
        rows.append(
            Row(
                candidate=one,
                seconds={part: median(values) for part, values in series.items()},
                ratios=_ratios(series, times[FULL]) if mine else {},
                against=_ratios(series, control) if control else {},
                over_bare=_ratios(series, alone) if alone else {},
                flops={
                    part: _part(cost, part, session.new_tokens) / _part(whole, part, session.new_tokens)
                    for part in ("prefill", "ttft", "whole")
                    if counted or part != "whole"
                },
                scoring=cost.scoring_flops / cost.prefill_flops,
                kv_counted=cost.kv_bytes * batch if counted else None,
                peak_counted=None if peak is None else peak * batch,
            )
        )
    failed = {one.name: one.failed for one in session.candidates.values() if one.failed}
    return Summary(tuple(rows), failed, batch, finished)


def _ratios(series: dict[str, list[float]], base: Sequence[dict[str, float]]) -> dict[str, Ratio]:
    """Of the parts that both have."""
    both = {part: values for part, values in series.items() if part in base[0]}
    return {part: ratio(values, [found[part] for found in base]) for part, values in both.items()}


def _kernel(session: Session, one: Candidate) -> str:
    kernel: str = one.kernel or session.model.config.get_text_config()._attn_implementation
    return kernel


def _cost(session: Session, one: Candidate) -> Cost:
    assert one.held is not None
    return kernel_cost(session.workload, session.model, _kernel(session, one), one.method, one.held.tokens)


def kernel_cost(
    workload: Workload, model: Any, kernel: str, method: Method | None = None, tokens: Sequence[int] | None = None
) -> Cost:
    """What one sample costs under an attention kernel: only eager attention computes what causality hides."""
    return workload.cost(model, method, tokens, "full" if kernel == "eager" else "causal")


def _part(cost: Cost, part: str, new_tokens: int) -> int:
    """FLOPs of a part, the method's own arithmetic left out."""
    if part == "prefill":
        return cost.prefill_flops
    first = cost.total_flops - cost.scoring_flops
    return first if part == "ttft" else first + (new_tokens - 1) * cost.decode_flops
