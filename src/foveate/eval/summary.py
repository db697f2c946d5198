"""From single answers to the table: each figure paired with the full model on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate.eval.cells import BASELINES, Cell
from foveate.eval.stats import Estimate, Resampled
from foveate.methods.base import Method

__all__ = ["RIVALS", "Column", "Outcome", "Summary", "nearest", "summarise", "unmatched"]

RIVALS = ("random", "resize")
"""What every method is held against, at the same true retention."""

NEAR = 0.1
"""How far apart two retentions may be, as a share of one, to count as the same: grids come in steps."""

Numbers = NDArray[np.float64]
K = TypeVar("K")


@dataclass(frozen=True)
class Column:
    """One setting's figures, a value a question, in the questions' order.

    Attributes:
        score: 1 for right and 0 for wrong, or a task's own score.
        agrees: 1 where the answer is the full model's, word for word.
        kl: KL divergence of the first answer token from the full model's, nats; NaN where it is not known.
        spent: Vision tokens a decoder layer processed, on average.
        vision_tokens: Vision tokens in the prompt.
        flops: From the pixels to the first token; NaN where the cost is not known.
    """

    score: Numbers
    agrees: Numbers
    kl: Numbers
    spent: Numbers
    vision_tokens: Numbers
    flops: Numbers

    @classmethod
    def mean(cls, columns: "Sequence[Column]") -> "Column":
        """The mean over draws of a method that draws by lot."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.mean([getattr(one, name) for one in columns], axis=0) for name in names})


@dataclass(frozen=True)
class Outcome:
    """A cell's figures.

    Attributes:
        cell: What was run.
        tokens: Vision tokens a decoder layer processed, mean over questions: what was truly spent.
        retention: The same as a share of the vision tokens.
        flops: Share of the full model's, from the pixels to the first token; None where the cost is not known.
        accuracy: Mean score.
        share: Of the full model's accuracy; None where that is zero.
        difference: Accuracy minus the full model's.
        agreement: Share of answers that are the full model's, word for word.
        kl: Mean divergence of the first answer token from the full model's, nats.
        tasks: Accuracy of each task.
        against: Accuracy minus that of each rival at the same true retention.
        draws: Accuracy of each draw, where there are several.
        hard: Accuracy on the questions that Resize, at the same true retention, gets wrong; None without it.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.cell.name,
            "budget": self.cell.budget,
            "settings": [method.to_dict() for method in self.cell.draws],
            "note": self.cell.note,
            "tokens": round(self.tokens, 3),
            "retention": round(self.retention, 5),
            "flops": None if self.flops is None else round(self.flops, 5),
            "accuracy": self.accuracy.to_dict(),
            "share": None if self.share is None else self.share.to_dict(),
            "difference": self.difference.to_dict(),
            "agreement": self.agreement.to_dict(),
            "kl": None if self.kl is None else self.kl.to_dict(),
            "tasks": {task: found.to_dict() for task, found in self.tasks.items()},
            "against": {rival: found.to_dict() for rival, found in self.against.items()},
            "hard": None if self.hard is None else self.hard.to_dict(),
            "draws": [round(draw, 5) for draw in self.draws],
        }


@dataclass(frozen=True)
class Summary:
    """All figures of a run.

    Attributes:
        counts: Questions of each task.
        pictures: How many pictures they are about.
        vision_tokens: Mean vision tokens of a prompt.
        accuracy: The full model's.
        tasks: The full model's, task by task.
        outcomes: Of the cells that could be run, in the order asked.
        infeasible: Cells below a method's floor.
        unit: What figures are multiplied by for people: 100 for shares, 1 for scores.
    """

    counts: Mapping[str, int]
    pictures: int
    vision_tokens: float
    accuracy: Estimate
    tasks: Mapping[str, Estimate]
    outcomes: tuple[Outcome, ...]
    infeasible: tuple[Cell[Any], ...]
    unit: float = 100.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "questions": sum(self.counts.values()),
            "pictures": self.pictures,
            "vision_tokens": round(self.vision_tokens, 3),
            "counts": dict(self.counts),
            "full": {
                "accuracy": self.accuracy.to_dict(),
                "tasks": {task: found.to_dict() for task, found in self.tasks.items()},
            },
            "cells": [outcome.to_dict() for outcome in self.outcomes],
            "infeasible": [
                {"name": cell.name, "budget": cell.budget, "floor": cell.floor, "reason": cell.infeasible}
                for cell in self.infeasible
            ],
        }


def summarise(
    tasks: Sequence[str],
    groups: Sequence[Any],
    cells: Sequence[Cell[Method]],
    column: Callable[[Method | None], Column],
) -> Summary:
    """Every figure with its interval, all from the same resampled pictures.

    Args:
        tasks: Of each question.
        groups: What each question is about, such as the picture's number.
        cells: What was run.
        column: The figures of a setting, of the full model for None.
    """
    resampled = Resampled(groups)
    names = list(dict.fromkeys(tasks))
    where = {task: np.array([one == task for one in tasks]) for task in names}

    def by_task(score: Numbers) -> dict[str, Estimate]:
        return {task: resampled.mean(np.where(mask, score, np.nan)) for task, mask in where.items()}

    full = column(None)
    columns = {id(cell): Column.mean([column(draw) for draw in cell.draws]) for cell in cells if cell.draws}
    spent = {at: float(column.spent.mean()) for at, column in columns.items()}

    def rival_of(cell: Cell[Method], name: str) -> Column | None:
        there = {id(one): spent[id(one)] for one in cells if one.name == name and one.draws}
        found = None if name == cell.name else nearest(spent[id(cell)], there)
        return None if found is None else columns[found]

    outcomes = []
    for cell in cells:
        if not cell.draws:
            continue
        mine = columns[id(cell)]
        flops = None if np.isnan(mine.flops).any() else float(mine.flops.sum() / full.flops.sum())
        outcomes.append(
            Outcome(
                cell=cell,
                tokens=spent[id(cell)],
                retention=float((mine.spent / mine.vision_tokens).mean()),
                flops=flops,
                accuracy=resampled.mean(mine.score),
                share=resampled.share(mine.score, full.score),
                difference=resampled.difference(mine.score, full.score),
                agreement=resampled.mean(mine.agrees),
                kl=None if np.isnan(mine.kl).all() else resampled.mean(mine.kl),
                tasks=by_task(mine.score),
                against={
                    rival: resampled.difference(mine.score, theirs.score)
                    for rival in RIVALS
                    if (theirs := rival_of(cell, rival)) is not None
                },
                hard=_hard(resampled, mine, rival_of(cell, "resize")),
                draws=tuple(float(column(draw).score.mean()) for draw in cell.draws) if len(cell.draws) > 1 else (),
            )
        )
    return Summary(
        counts={task: int(mask.sum()) for task, mask in where.items()},
        pictures=len(set(groups)),
        vision_tokens=float(full.vision_tokens.mean()),
        accuracy=resampled.mean(full.score),
        tasks=by_task(full.score),
        outcomes=tuple(outcomes),
        infeasible=tuple(cell for cell in cells if not cell.draws),
    )


def unmatched(summary: Summary) -> list[float]:
    """Shares truly spent by methods that spend another share than they were given, for baselines to be run at."""
    spent = [
        round(outcome.retention, 3)
        for outcome in summary.outcomes
        if outcome.cell.budget is not None
        and outcome.cell.name not in BASELINES
        and abs(outcome.retention - outcome.cell.budget) > NEAR / 2 * outcome.cell.budget
    ]
    fixed = [round(outcome.retention, 3) for outcome in summary.outcomes if outcome.cell.budget is None]
    return sorted({*spent, *fixed}, reverse=True)


def _hard(resampled: Resampled, mine: Column, resized: Column | None) -> Estimate | None:
    if resized is None or not (missed := resized.score < 0.5).any():
        return None
    return resampled.mean(np.where(missed, mine.score, np.nan))


def nearest(spent: float, others: Mapping[K, float]) -> K | None:
    """Of costs by name, whose is nearest to what was spent; None if that is not near."""
    found = min(others, key=lambda name: abs(others[name] - spent), default=None)
    return found if found is not None and abs(others[found] - spent) <= NEAR * spent else None
