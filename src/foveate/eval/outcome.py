"""What one cell came to: its figures beside the full model's, as plain values and as a row of a table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foveate.eval.cells import Cell
from foveate.eval.stats import Estimate

__all__ = ["RIVALS", "Outcome", "points"]

RIVALS = ("random", "resize")
"""What every method is compared with, at the same true retention."""

UNMET = 0.02
"""How far what is spent may lie from what was asked for, as a share of it."""


@dataclass(frozen=True)
class Outcome:
    """A cell's figures.

    Attributes:
        cell: What was run.
        tokens: Vision tokens a decoder layer processed, mean over questions: what was truly spent.
        retention: The same as a share of the vision tokens.
        flops: Share of the full model's, from the pixels to the first token; None where the cost is not known.
        accuracy: Mean score, or the benchmark's figure.
        share: Of the full model's accuracy; None where that is zero.
        difference: Accuracy minus the full model's.
        agreement: Share of answers that are the full model's, word for word.
        kl: Mean divergence of the first answer token from the full model's, nats; None where it is not known.
        tasks: Accuracy of each task.
        against: Accuracy minus that of each rival at the same true retention.
        draws: Accuracy of each draw, where there are several.
        hard: Accuracy on the hard questions: the full model gets them right, Resize at the same true retention wrong;
            None where there are none, or no Resize.
        hard_questions: How many these are.
        right: Of each task, how many answers to each seed's questions are right, all draws together; empty where
            pictures are not drawn.
    """

    cell: Cell[Any]
    tokens: float
    retention: float
    flops: float | None
    accuracy: Estimate
    share: Estimate | None
    difference: Estimate
    agreement: Estimate
    kl: Estimate | None
    tasks: Mapping[str, Estimate]
    against: Mapping[str, Estimate]
    draws: tuple[float, ...]
    hard: Estimate | None = None
    hard_questions: int = 0
    right: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.cell.name,
            "budget": self.cell.budget,
            "settings": [draw.to_dict() for draw in self.cell.draws],
            "note": self.cell.note,
            "tokens": round(self.tokens, 3),
            "retention": round(self.retention, 5),
            "flops": None if self.flops is None else round(self.flops, 5),
            "accuracy": self.accuracy.to_dict(),
            "share": _plain(self.share),
            "difference": self.difference.to_dict(),
            "agreement": self.agreement.to_dict(),
            "kl": _plain(self.kl),
            "tasks": {task: accuracy.to_dict() for task, accuracy in self.tasks.items()},
            "against": {rival: difference.to_dict() for rival, difference in self.against.items()},
            "hard": self.hard and {**self.hard.to_dict(), "questions": self.hard_questions},
            "draws": [round(draw, 5) for draw in self.draws],
            "right": {task: list(right) for task, right in self.right.items()},
        }

    def row(self, unit: float) -> list[str]:
        """Its row in the table of `Summary`; figures are multiplied by `unit`."""
        return [
            self.cell.name,
            f"{self.tokens:.1f}",
            _formatted(self.flops, ".0%"),
            points(self.accuracy, unit),
            _formatted(self.share, ".0%"),
            _formatted(self.agreement, ".0%"),
            _formatted(self.kl, ".2f"),
            f"{self.hard.value:.0%} of {self.hard_questions}" if self.hard else "",
            *(self._difference_from(rival, unit) for rival in RIVALS),
        ]

    def _difference_from(self, rival: str, unit: float) -> str:
        if rival not in self.against:
            return ""
        return points(self.against[rival], unit, signed=True)

    def notes(self) -> list[str]:
        """Sentences that a reader of its row must know."""
        name = f"{self.cell.name} at {self.tokens:.0f} tokens"
        notes = []
        if (miss := self._miss()) is not None:
            notes.append(f"{name}: the budget is not met, {miss}.")
        if self.cell.note:
            notes.append(f"{name}: {self.cell.note}.")
        return notes

    def _miss(self) -> str | None:
        """How far its budget was missed, in words; None where it was met."""
        budget = self.cell.budget
        if budget is None:
            return None
        spent, asked_words, spent_words = self.retention, f"{budget:.1%}", f"{self.retention:.1%}"
        if budget > 1:  # benchmarks are asked in tokens too
            spent, asked_words, spent_words = self.tokens, f"{budget:g} tokens", f"{self.tokens:.1f}"
        if abs(spent - budget) <= UNMET * budget:
            return None
        return f"{asked_words} was asked for, {spent_words} is spent"


def points(figure: Estimate, unit: float, *, signed: bool = False) -> str:
    """A figure with half its interval's width, or with its open end at an edge; multiplied by `unit`.

    `61.4 ± 2.1`, `100.0 (≥ 88.6)`, `0.0 (≤ 11.4)`; signed: `+3.0 ± 1.9`.
    """
    sign = "+" if signed else ""
    if not signed and figure.low < figure.value == figure.high:
        return f"{unit * figure.value:.1f} (≥ {unit * figure.low:.1f})"
    if not signed and figure.low == figure.value < figure.high:
        return f"{unit * figure.value:.1f} (≤ {unit * figure.high:.1f})"
    return f"{unit * figure.value:{sign}.1f} ± {unit / 2 * (figure.high - figure.low):.1f}"


def _formatted(figure: Estimate | float | None, form: str) -> str:
    """A figure without its interval; nothing where it is not known."""
    if figure is None:
        return ""
    if isinstance(figure, Estimate):
        figure = figure.value
    return format(figure, form)


def _plain(figure: Estimate | None) -> dict[str, float] | None:
    return None if figure is None else figure.to_dict()
