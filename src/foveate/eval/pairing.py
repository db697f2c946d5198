"""From the columns of a run to its summary: every cell paired with the full model on the same questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.eval.cells import BASELINES, Cell
from foveate.eval.outcome import RIVALS, Outcome
from foveate.eval.stats import Estimate, Numbers, Resampled, estimate, share
from foveate.eval.summary import Summary

__all__ = ["Column", "summarise", "unmatched"]

NEAR = 0.1
"""How far apart two retentions may be, as a share of one, to count as the same: grids come in steps."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """What one setting came to: a value a question, in the questions' order.

    Attributes:
        score: (questions,) 1 for right and 0 for wrong, or a task's own score; None where `figures` are given.
        figures: (1 + resamples,) a benchmark's figure that is no mean of scores, then that of every resample. Of all
            settings these are the same resamples. None: the mean of `score`.
        agrees: (questions,) 1 where the answer is the full model's, word for word.
        kl: (questions,) KL divergence of the first answer token from the full model's, nats; NaN where it is not known.
        spent: (questions,) vision tokens a decoder layer processed, on average.
        vision_tokens: (questions,) vision tokens in the prompt.
        flops: (questions,) from the pixels to the first token; NaN where the cost is not known.
    """

    score: Numbers | None = None
    figures: Numbers | None = None
    agrees: Numbers
    kl: Numbers
    spent: Numbers
    vision_tokens: Numbers
    flops: Numbers

    @classmethod
    def of(
        cls,
        rows: Sequence[Mapping[str, Any]],
        full: Sequence[Mapping[str, Any]],
        *,
        score: Sequence[float] | None = None,
        figures: Sequence[float] | None = None,
    ) -> "Column":
        """From the records of a setting's answers and of the full model's, question by question."""
        agrees = [row["answer"] == other["answer"] for row, other in zip(rows, full, strict=True)]
        names = ("kl", "spent", "vision_tokens", "flops")
        numbers = {name: np.array([row.get(name) for row in rows], dtype=np.float64) for name in names}
        if score is not None:
            numbers["score"] = np.array(score, dtype=np.float64)
        if figures is not None:
            numbers["figures"] = np.array(figures, dtype=np.float64)
        return cls(agrees=np.array(agrees, dtype=np.float64), **numbers)

    @classmethod
    def mean(cls, columns: "Sequence[Column]") -> "Column":
        """The mean over draws of a method that draws at random."""
        means = {}
        for field in fields(cls):
            values = [getattr(column, field.name) for column in columns]
            if values[0] is not None:
                means[field.name] = np.mean(values, axis=0)
        return cls(**means)

    @property
    def retention(self) -> float:
        """Mean share of the vision tokens that a decoder layer processed; 1 for a question without any."""
        shares = np.divide(self.spent, self.vision_tokens, out=np.ones_like(self.spent), where=self.vision_tokens > 0)
        return float(shares.mean())

    @property
    def tokens(self) -> float:
        """Vision tokens a decoder layer processed, mean over questions."""
        return float(self.spent.mean())


def summarise(
    tasks: Sequence[str],
    groups: Sequence[Any],
    full: Column,
    cells: Sequence[Cell[Any]],
    columns: Sequence[Sequence[Column]],
    *,
    seeds: Sequence[int] | None = None,
    **about: Any,
) -> Summary:
    """Every figure with its interval, all over the same pictures and seeds.

    Args:
        tasks: Of each question.
        groups: What each question is about, such as the picture's number.
        full: The full model's column.
        cells: What was run.
        columns: Of each cell, a column for each of its draws.
        seeds: Which seed drew the picture of each question; None where pictures are not drawn.
        about: `unit`, `title`, `figure`, `higher_is_better` and `origin` of the summary.
    """
    pairing = _Pairing(tasks, groups, full, seeds)
    means = {place: Column.mean(draws) for place, draws in enumerate(columns) if draws}
    outcomes = []
    for place, column in means.items():
        rivals = {name: _rival(name, place, cells, means) for name in RIVALS}
        matched = {name: rival for name, rival in rivals.items() if rival is not None}
        outcomes.append(pairing.outcome(cells[place], column, columns[place], matched))
    return Summary(
        counts={task: int(asked.sum()) for task, asked in pairing.asked.items()},
        pictures=pairing.resampled.count,
        vision_tokens=float(full.vision_tokens.mean()),
        accuracy=pairing.accuracy(full),
        tasks=pairing.by_task(full),
        outcomes=tuple(outcomes),
        infeasible=tuple(cell for cell in cells if not cell.draws),
        seeds=pairing.seeds,
        pictures_by_seed=pairing.pictures_by_seed(groups),
        counts_by_seed={task: pairing.by_seed(asked) for task, asked in pairing.asked.items()},
        right=pairing.right([full]),
        **about,
    )


class _Pairing:
    """The full model on some questions, and what other settings are beside it.

    Attributes:
        resampled: Pictures drawn again.
        asked: Of each task, (questions,) whether a question is one of it.
        seeds: Those that drew pictures, in the order asked; none where pictures are not drawn.
    """

    def __init__(self, tasks: Sequence[str], groups: Sequence[Any], full: Column, seeds: Sequence[int] | None) -> None:
        self.resampled = Resampled(groups, seeds)
        self.seeds = tuple(dict.fromkeys(seeds or ()))
        self._of_seed = [np.array(seeds) == seed for seed in self.seeds]  # each (questions,)
        labels = np.array(tasks)
        self.asked = {task: labels == task for task in dict.fromkeys(tasks)}
        self.full = full

    def figures(self, column: Column) -> Numbers:
        """(1 + resamples,): the setting's figure, then that of every resample."""
        if column.figures is not None:
            return column.figures
        assert column.score is not None
        return self.resampled.means(column.score)

    def accuracy(self, column: Column) -> Estimate:
        """The setting's figure with its interval."""
        if column.score is not None:
            return self.resampled.proportion(column.score)
        return estimate(self.figures(column))

    def by_task(self, column: Column) -> dict[str, Estimate]:
        """The mean score of each task; empty where there are no scores."""
        if column.score is None:
            return {}
        scores = {task: np.where(asked, column.score, np.nan) for task, asked in self.asked.items()}
        return {task: self.resampled.proportion(score) for task, score in scores.items()}

    def by_seed(self, marks: NDArray[Any]) -> tuple[int, ...]:
        """How many of (questions,) marks of 0 or 1 each seed has."""
        return tuple(round(float(marks[asked].sum())) for asked in self._of_seed)

    def pictures_by_seed(self, groups: Sequence[Any]) -> tuple[int, ...]:
        """How many pictures each seed drew."""
        pictures = np.array(groups)
        return tuple(len(np.unique(pictures[asked])) for asked in self._of_seed)

    def right(self, draws: Sequence[Column]) -> dict[str, tuple[int, ...]]:
        """Of each task, how many answers to each seed's questions are right in all draws; empty without seeds."""
        scores = [column.score for column in draws if column.score is not None]
        if not scores or not self.seeds:
            return {}
        marks = np.sum(scores, axis=0)
        return {task: self.by_seed(np.where(asked, marks, 0)) for task, asked in self.asked.items()}

    def outcome(
        self, cell: Cell[Any], column: Column, draws: Sequence[Column], rivals: Mapping[str, Column]
    ) -> Outcome:
        """A cell's figures; `column` is the mean of its draws."""
        accuracies: list[float] = []
        if len(draws) > 1:
            accuracies = [float(self.figures(draw)[0]) for draw in draws]
        hard, hard_questions = self._hard(column, rivals.get("resize"))
        return Outcome(
            cell=cell,
            tokens=column.tokens,
            retention=column.retention,
            flops=self._flops(column),
            accuracy=self.accuracy(column),
            share=self._share(column),
            difference=self._difference(column, self.full),
            agreement=self.resampled.proportion(column.agrees),
            kl=self._kl(column),
            tasks=self.by_task(column),
            against={name: self._difference(column, rival) for name, rival in rivals.items()},
            right=self.right(draws),
            hard=hard,
            hard_questions=hard_questions,
            draws=tuple(accuracies),
        )

    def _share(self, column: Column) -> Estimate | None:
        figures, full = self.figures(column), self.figures(self.full)
        if full[0] == 0:
            return None
        return share(figures, full, self._widening(column, self.full, float(figures[0] / full[0])))

    def _difference(self, column: Column, rival: Column) -> Estimate:
        return estimate(self.figures(column) - self.figures(rival), self._widening(column, rival))

    def _widening(self, column: Column, other: Column, times: float = 1.0) -> float:
        """What seeds add to the interval of one mean minus another, taken `times`; 1 where figures are no means."""
        if column.score is None or other.score is None:
            return 1.0
        return self.resampled.widening(column.score - times * other.score)

    def _flops(self, column: Column) -> float | None:
        """The share of the full model's FLOPs; None where one is not known."""
        flops = float(column.flops.sum() / self.full.flops.sum())
        if np.isnan(flops):
            return None
        return flops

    def _kl(self, column: Column) -> Estimate | None:
        """The mean divergence of the first token; None where one is not known."""
        if np.isnan(column.kl).any():
            return None
        return self.resampled.mean(column.kl)

    def _hard(self, column: Column, resized: Column | None) -> tuple[Estimate | None, int]:
        """Accuracy on the questions that the full model gets right and Resize wrong, and how many these are.

        VTC-Bench's difficult samples: Liao et al., arXiv:2510.07143. What the full model gets wrong says nothing about
        dropping.
        """
        if resized is None or resized.score is None or column.score is None or self.full.score is None:
            return None, 0
        hard = (self.full.score >= 0.5) & (resized.score < 0.5)
        if not hard.any():
            return None, 0
        return self.resampled.proportion(np.where(hard, column.score, np.nan)), int(hard.sum())


def _rival(name: str, place: int, cells: Sequence[Cell[Any]], means: Mapping[int, Column]) -> Column | None:
    """The column of a rival that truly cost as much as the cell at this place; None where there is none."""
    if cells[place].name == name:
        return None
    spent = means[place].tokens
    columns = [column for other, column in means.items() if cells[other].name == name]
    nearest = min(columns, key=lambda column: abs(column.tokens - spent), default=None)
    if nearest is None or abs(nearest.tokens - spent) > NEAR * spent:
        return None
    return nearest


def unmatched(summary: Summary) -> list[float]:
    """Shares truly spent by methods that spend another share than they were given, for baselines to be run at."""
    shares = set()
    for outcome in summary.outcomes:
        budget, retention = outcome.cell.budget, outcome.retention
        if budget is None or (outcome.cell.name not in BASELINES and abs(retention - budget) > NEAR / 2 * budget):
            shares.add(round(retention, 3))
    return sorted(shares, reverse=True)
