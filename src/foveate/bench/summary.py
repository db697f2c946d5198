"""What a run has shown: its rows, and the tables made from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from foveate._sheet import Sheet
from foveate.bench.rows import Row, rows_of
from foveate.bench.run import AGAIN, Session
from foveate.bench.tables import footnotes, run_sheets

__all__ = ["Summary", "summarise"]


@dataclass(frozen=True, slots=True, repr=False)
class Summary:
    """All rows of a run, the untouched model first. A notebook shows its tables.

    Attributes:
        rows: Those that ran.
        failed: Why others did not, by name.
        batch: Samples a run.
        rounds: How many were finished.
        asked: How many were asked for.
        obstacle: Why there are no rows of bare layers; empty where there are some, or none were asked for.
    """

    rows: tuple[Row, ...]
    failed: dict[str, str]
    batch: int
    rounds: int
    asked: int
    obstacle: str

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)

    @property
    def noisy(self) -> list[str]:
        """Parts in which the untouched model differs from itself: its interval does not hold 1."""
        if not self.rounds:
            return []
        ratios = self.row(AGAIN).ratios
        return [part for part, ratio in ratios.items() if not ratio.low <= 1 <= ratio.high]

    def sheets(self, title: str = "", notes: Sequence[str] = ()) -> list[Sheet]:
        """The tables; what a reader must know, and `notes`, stand below the last."""
        lines = footnotes(self.rows, self.rounds, self.asked)
        if self.obstacle:
            lines.append(f"No rows of bare layers: {self.obstacle}.")
        lines += notes
        lines += [f"{name}: did not run: {why}" for name, why in self.failed.items()]
        return run_sheets(self.rows, title, lines)

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, with the time of every round."""
        return {
            "rounds": self.rounds,
            "rounds_asked": self.asked,
            "noisy": self.noisy,
            "failed": self.failed,
            "no_bare": self.obstacle,
            "rows": [row.to_dict() for row in self.rows],
        }

    def __repr__(self) -> str:
        names = ", ".join(row.name for row in self.rows)
        return f"Summary({self.rounds} rounds of {names})"

    def _repr_html_(self) -> str:
        return "".join(sheet.to_html() for sheet in self.sheets())


def summarise(session: Session) -> Summary:
    """Every figure of the rounds that are finished."""
    candidates = session.candidates.values()
    return Summary(
        rows=tuple(rows_of(session)),
        failed={candidate.name: candidate.failed for candidate in candidates if candidate.failed},
        batch=session.workload.batch,
        rounds=session.finished,
        asked=session.asked,
        obstacle=session.obstacle,
    )
