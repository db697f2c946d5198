"""What each method takes beside random dropping of as many tokens: its own scoring, in FLOPs and in time.

session = Session(model, workload, new_tokens=1)
left_out = prepare(session, methods)
for finished in session.run(pairs=30): ...
print(overhead_sheet([Overheads.of(session)]))
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate._sheet import Column, Sheet
from foveate.bench.rows import Row, rows_of
from foveate.bench.run import Candidate, Session
from foveate.bench.timing import Ratio, interval_words
from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.methods.random import Random

__all__ = ["CONTROL", "Overheads", "overhead_sheet", "prepare"]

CONTROL = "random again"
"""The first method's control a second time: how far from 1 noise alone goes."""
PART = "ttft"
"""What is compared: from the call to the first token, wherever on this way a method scores."""


def prepare(
    session: Session, methods: Mapping[str, Method], starting: Callable[[str], object] = lambda name: None
) -> dict[str, str]:
    """Put each method beside its control, and one control beside itself.

    Args:
        session: Without candidates.
        methods: By the names of their rows; none of them random dropping.
        starting: Called with the name of each candidate before it runs.

    Returns:
        Why methods are left out, by name: they cannot run here, or drop nothing of this prompt.
    """
    session.prepare(methods, bare=False, checks=False, peak=False, starting=starting)
    left_out: dict[str, str] = {}
    for name in methods:
        candidate = session.candidates[name]
        reason = candidate.failed
        if candidate.held is not None and min(candidate.held.tokens) == session.workload.vision_tokens:
            reason = "drops nothing of this prompt."
        if reason:
            left_out[name] = reason
            del session.candidates[name]
    used = [candidate.control for candidate in session.candidates.values() if candidate.control]
    for name, candidate in list(session.candidates.items()):
        if isinstance(candidate.method, Random) and name not in used:
            del session.candidates[name]
    if used:
        first = session.candidates[used[0]]
        session.candidates[CONTROL] = Candidate(CONTROL, first.method, control=first.name, held=first.held)
    return left_out


@dataclass(frozen=True, slots=True, repr=False)
class Overheads:
    """What a session has shown at one batch size.

    Attributes:
        batch: Samples a run.
        rounds: How many were finished.
        rows: Of each method, and of the control that is compared with itself.
    """

    batch: int
    rounds: int
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, session: Session) -> "Overheads":
        """Of the rounds that are finished."""
        compared = tuple(row for row in rows_of(session) if PART in row.against)
        return cls(session.workload.batch, session.finished, compared)

    @property
    def noisy(self) -> bool:
        """Whether random dropping differs from itself: its interval does not hold 1."""
        control = self.row(CONTROL)
        return control is not None and not control.against[PART].low <= 1 <= control.against[PART].high

    def row(self, name: str) -> Row | None:
        """The row of this name, if it ran."""
        return next((row for row in self.rows if row.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, with the time of every round."""
        rows = []
        for row in self.rows:
            own: dict[str, Any] = {"scoring_flops": None, "scoring_share": None}
            if scoring_known(row):
                own = {"scoring_flops": row.cost.scoring_flops, "scoring_share": scoring_share(row)}
            rows.append(row.to_dict() | own | {"time_share": time_share(row).to_dict()})
        return {"batch": self.batch, "rounds": self.rounds, "noisy": self.noisy, "rows": rows}


def time_share(row: Row) -> Ratio:
    """The share of its time to the first token that a method takes and random dropping does not; below 0 by noise."""
    ratio = row.against[PART]
    return Ratio(1 - 1 / ratio.median, 1 - 1 / ratio.low, 1 - 1 / ratio.high, ratio.rounds)


def scoring_known(row: Row) -> bool:
    """Whether arithmetic knows what a method scores with; not where the picture decides how many rows a layer has."""
    cost, method = row.cost, row.candidate.method
    assert method is not None  # only methods have a control
    stages = method.stages(Shape(len(cost.tokens)))
    return not follow.layer_stages(stages) or method.plan(len(cost.tokens), cost.vision_tokens) is not None


def scoring_share(row: Row) -> float:
    """The share of its FLOPs to the first token that a method scores with."""
    return row.cost.scoring_flops / row.cost.total_flops


def overhead_sheet(results: Sequence[Overheads], title: str = "", notes: Sequence[str] = ()) -> Sheet:
    """One table: a row a method, and for each batch size its time over random dropping's."""
    heads: list[str | Column] = [
        "",
        *(Column(head, right=True) for head in ("\nTokens", "Scoring\nMFLOP", "\nof FLOPs")),
    ]
    for result in results:
        heads += [f"Batch {result.batch}:\n÷ random", Column("\nof time", right=True)]
    names = dict.fromkeys(row.name for result in results for row in result.rows)
    ordered = sorted(names, key=lambda name: name != CONTROL)  # the control first, all others in their order
    lines = [_cells(name, [result.row(name) for result in results]) for name in ordered]
    return Sheet(title, heads, lines, [*_footnotes(results), *notes])


def _cells(name: str, rows: Sequence[Row | None]) -> tuple[str, ...]:
    ran = next(row for row in rows if row is not None)
    cells = [name, f"{ran.tokens:.1f}", "", ""]
    if name != CONTROL and scoring_known(ran):
        cells[2:] = [f"{ran.cost.scoring_flops / 1e6:.3g}", f"{scoring_share(ran):.2%}"]
    for row in rows:
        if row is None:
            cells += ["did not run", ""]
            continue
        ratio = row.against[PART]
        cells.append(f"{ratio.median:.3f}\n[{ratio.low:.3f}–{ratio.high:.3f}]")
        cells.append(f"{time_share(row).median:.1%}")
    return tuple(cells)


def _footnotes(results: Sequence[Overheads]) -> list[str]:
    counts = sorted({result.rounds for result in results})
    rounds = " and ".join(map(str, counts))
    return [
        f"÷ random: time from the call to the first token over that of random dropping with the same tokens in every "
        f"layer, in the same round: the median of {rounds} rounds and their {interval_words(counts[0])}. "
        f"{CONTROL}: random dropping over itself, so all of that is noise.",
        "of time: the share of a method's own time to the first token that random dropping does not take.",
        "Scoring: FLOPs of one sample by fv.cost, and their share to the first token; empty where the picture decides "
        "how many tokens stay. Attention and keys that a method reads in the vision tower, and sorting, are not in it; "
        "they are in the time.",
    ]
