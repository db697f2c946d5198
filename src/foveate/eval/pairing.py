"""Turn logs of answers into rows of figures, with every setting paired with the full model on the same questions.

A log has one row of plain values per question, in the order of the questions:

    task, picture                the task; the picture (resampling is over pictures)
    answer, score                the answer; 1 for right, 0 for wrong, or a share; None if nothing is scored
    labels                       the answers that count as right; empty or missing if unknown
    spent, vision_tokens         mean vision tokens per decoder layer; vision tokens of the prompt
    flops, kl                    FLOPs to the first token; KL of the first token from the full model's, nats; or None
    again                        1 if a second look asked the full model again, 0 if not; None for other settings

The rows are those of `foveate.eval.quality_rows`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np

from foveate.eval.plan import BASELINES, Contender
from foveate.eval.quality_rows import FullRow, FullTaskRow, MethodRow, Pair, QualityRow, RefusedRow, SettingRow, TaskRow
from foveate.plain.stats import UNKNOWN, Estimate, Numbers, Resampled, estimate, share

Log = Sequence[Mapping[str, Any]]
Aggregate = Callable[[Log], float]
"""Computes a benchmark's figure from rows of a log, if it is not the mean of scores."""

FULL_MODEL = "full model"
RIVALS = ("random", "resize")
"""Controls that every method is compared with, at the same spent cost."""
NEAR = 0.1
"""Maximum relative difference of two costs that count as equal. (Resize has only grids of certain sizes.)"""
FEWEST = 6
"""Minimum pictures for a verdict. If five pictures all point one way, a sign test has p = 2 / 2⁵ = 0.06."""
LEFT = 0.25
"""Share of the full model's accuracy on a task below which the task counts as collapsed."""
NUMBERS = ("score", "kl", "spent", "vision_tokens", "flops", "again")


def figures_of(
    full: Log,
    ran: Iterable[tuple[Contender, Sequence[Log]]],
    aggregate: Aggregate | None = None,
    spends: Literal["spent", "flops"] = "spent",
) -> list[QualityRow]:
    """Return all figures with their intervals: one row per setting, and one per setting and task.

    Figures are rounded to 5 decimals, so that a rounding error is no difference. Intervals are 95 %; with fewer than
    five pictures, the two ends are NaN because the interval would mean nothing.

    Args:
        full: The full model's log.
        ran: Each contender with the logs of its draws. A contender without logs is infeasible.
        aggregate: Computes the figure, if it is not the mean of scores.
        spends: The unit of budgets and of equal cost: "spent" (vision tokens) or "flops".

    Returns:
        The full model's row and its rows of tasks, then those of each setting, then the budgets that cannot be met.
        An aggregate has no scores, so there are no rows of tasks.
    """
    ran = list(ran)
    pairing = _Pairing(full, aggregate, spends)
    settings = [pairing.measure(contender, logs) for contender, logs in ran if logs]
    rows: list[QualityRow] = [pairing.with_commonest(FullRow, pairing.row(pairing.full))]
    rows += [pairing.with_commonest(FullTaskRow, row) for row in pairing.task_rows(pairing.full)]
    for place, setting in enumerate(settings):
        rows += [pairing.compare(settings, place), *pairing.task_rows(setting)]
    for contender, logs in ran:
        if not logs:
            rows.append(RefusedRow(contender.name, contender.budget, contender.infeasible, contender.floor))
    return rows


@dataclass(frozen=True)
class _Setting:
    """A contender's answers as numbers.

    Attributes:
        contender: The contender.
        numbers: For each numeric column and "agrees": (questions,), mean over draws; NaN if unknown.
        figures: (1 + resamples,): the accuracy, then that of each resample.
        draws: The accuracy of each draw.
        cost: Mean cost in the budgets' unit.
    """

    contender: Contender
    numbers: Mapping[str, Numbers]
    figures: Numbers
    draws: Sequence[float]
    cost: float

    @property
    def tokens(self) -> float:
        return float(self.numbers["spent"].mean())


class _Pairing:
    """Pairs settings with the full model and with each other, on the same questions."""

    def __init__(self, log: Log, aggregate: Aggregate | None, spends: str) -> None:
        self._log, self._aggregate, self._spends = log, aggregate, spends
        self._resampled = Resampled([row["picture"] for row in log])
        tasks = np.array([row["task"] for row in log])
        self._tasks = {str(task): tasks == task for task in dict.fromkeys(tasks)}  # each (questions,)
        self.full = self.measure(Contender(FULL_MODEL, None, ()), [log])

    def measure(self, contender: Contender, logs: Sequence[Log]) -> _Setting:
        """Convert a contender's logs to numbers, paired with the full model's."""
        columns = [_numbers(log, self._log) for log in logs]
        if self._aggregate is None:
            figures = [self._resampled.means(column["score"]) for column in columns]
        else:
            figures = [self._resampled.over(log, self._aggregate) for log in logs]
        means = {name: np.mean([column[name] for column in columns], axis=0) for name in columns[0]}
        draws, cost = [float(drawn[0]) for drawn in figures], float(means[self._spends].mean())
        return _Setting(contender, means, np.mean(figures, axis=0), draws, cost)

    def row(self, setting: _Setting) -> SettingRow:
        """Return the figures that need only a setting's own log."""
        numbers, contender = setting.numbers, setting.contender
        vision_tokens = numbers["vision_tokens"]
        # a question without vision tokens counts as retention 1
        shares = np.divide(numbers["spent"], vision_tokens, np.ones_like(vision_tokens), where=vision_tokens > 0)
        of_full = np.array([row.get("flops") for row in self._log], dtype=np.float64).sum()
        if self._aggregate is None:
            accuracy = self._resampled.proportion(numbers["score"])
        else:
            accuracy = estimate(setting.figures)
        return SettingRow(
            name=contender.name,
            budget=contender.budget,
            task=None,
            questions=len(self._log),
            pictures=self._resampled.count,
            tokens=round(setting.tokens, 3),
            retention=round(float(shares.mean()), 5),
            again=round(float(numbers["again"].mean()), 5),
            flops=round(float(numbers["flops"].sum() / of_full), 5),
            accuracy=round(accuracy, 5),
        )

    def task_rows(self, setting: _Setting) -> list[TaskRow]:
        """Return a row with the accuracy of each task; empty with an aggregate, which has no scores."""
        name, budget = setting.contender.name, setting.contender.budget
        rows = []
        for task, asked in self._tasks.items() if self._aggregate is None else ():
            accuracy = self._resampled.proportion(np.where(asked, setting.numbers["score"], np.nan))
            tokens = float(setting.numbers["spent"][asked].mean())
            rows.append(TaskRow(name, budget, task, int(asked.sum()), round(tokens, 3), round(accuracy, 5)))
        return rows

    def with_commonest(self, kind: type[FullTaskRow], row: TaskRow) -> FullTaskRow:
        """Return the full model's row with its commonest label and answer."""
        rows = [logged for logged in self._log if row.task in (None, logged["task"])]
        label, share = _commonest([set(logged.get("labels", ())) for logged in rows])
        _, alike = _commonest([{logged["answer"]} for logged in rows])
        if self._aggregate is not None or not all(logged.get("labels") for logged in rows):
            label, share = None, nan
        return kind(**vars(row), commonest=share, commonest_label=label, alike=alike)

    def pair(self, setting: _Setting, other: _Setting) -> Pair:
        """Compare a setting with another one."""
        agreement = self._resampled.mean(setting.numbers["agrees"] - other.numbers["agrees"])
        tokens, accuracy = round(other.tokens, 3), self._difference(setting, other)
        return Pair(other.contender.name, other.contender.budget, tokens, accuracy, round(agreement, 5))

    def compare(self, settings: Sequence[_Setting], place: int) -> MethodRow:
        """Compare the setting at `place` with the full model, its rivals and the settings before it."""
        setting = settings[place]
        numbers, contender = setting.numbers, setting.contender
        random, resize = (_rival(name, setting, settings) for name in RIVALS)
        hard, hard_questions = self._hard(setting, resize)
        row = self.row(setting)
        caution = contender.draws[0].caution(row.retention)
        return MethodRow(
            **vars(row),
            share=round(share(setting.figures, self.full.figures), 5),
            difference=self._difference(setting, self.full),
            agreement=round(self._resampled.proportion(numbers["agrees"]), 5),
            kl=UNKNOWN if np.isnan(numbers["kl"]).any() else round(self._resampled.mean(numbers["kl"]), 5),
            minus_random=self._difference(setting, random),
            minus_resize=self._difference(setting, resize),
            hard=round(hard, 5),
            hard_questions=hard_questions,
            draws=[round(draw, 5) for draw in setting.draws] if len(setting.draws) > 1 else [],
            settings=[draw.to_dict() for draw in contender.draws],
            note="; ".join(filter(None, (contender.note, caution))),
            paired=[self.pair(setting, other) for other in settings[:place] if _is_beside(setting, other)],
        )

    def _difference(self, setting: _Setting, other: _Setting | None) -> Estimate:
        return UNKNOWN if other is None else round(estimate(setting.figures - other.figures), 5)

    def _hard(self, setting: _Setting, resized: _Setting | None) -> tuple[Estimate, int]:
        """Return the accuracy on questions that the full model gets right and Resize wrong, and their number.

        These are VTC-Bench's difficult samples, group A: Liao et al., arXiv:2510.07143. Questions that the full model
        gets wrong say nothing about dropping.
        """
        if resized is None:
            return UNKNOWN, 0
        hard = (self.full.numbers["score"] >= 0.5) & (resized.numbers["score"] < 0.5)  # False for NaN
        if not hard.any():
            return UNKNOWN, 0
        return self._resampled.proportion(np.where(hard, setting.numbers["score"], np.nan)), int(hard.sum())


def _commonest(texts: Sequence[Set[str]]) -> tuple[str | None, float]:
    """Return the text that is in most questions' sets, and the share of these questions."""
    counts = Counter(text for of_question in texts for text in sorted(of_question))
    text, count = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    return text, round(count / len(texts), 5)


def _numbers(log: Log, full: Log) -> dict[str, Numbers]:
    """Return each numeric column, (questions,), and "agrees": 1 if the answer equals the full model's, else 0."""
    columns = {name: np.array([row.get(name) for row in log], dtype=np.float64) for name in NUMBERS}
    agrees = [row["answer"] == other["answer"] for row, other in zip(log, full, strict=True)]
    return {**columns, "agrees": np.array(agrees, dtype=np.float64)}


def _rival(name: str, setting: _Setting, settings: Sequence[_Setting]) -> _Setting | None:
    """Return the setting of this name with the same spent cost, or None."""
    if setting.contender.name == name:
        return None
    rivals = [other for other in settings if other.contender.name == name]
    nearest = min(rivals, key=lambda other: abs(other.cost - setting.cost), default=None)
    if nearest is None or not _cost_alike(setting, nearest):
        return None
    return nearest


def _is_beside(setting: _Setting, other: _Setting) -> bool:
    """Return whether two settings have the same budget or the same spent cost."""
    budget = other.contender.budget
    return (budget is not None and budget == setting.contender.budget) or _cost_alike(setting, other)


def _cost_alike(setting: _Setting, other: _Setting) -> bool:
    """Return whether two settings spend the same within `NEAR`, in tokens or FLOPs."""
    return abs(other.cost - setting.cost) <= NEAR * setting.cost


def shares_unmatched(rows: Iterable[QualityRow]) -> list[float]:
    """Return the shares that methods spent and that no baseline is near, so that baselines can be run there."""
    ran = [row for row in rows if isinstance(row, MethodRow)]
    budgets = [row.budget for row in ran if row.name in BASELINES and row.budget is not None]
    spent = {round(row.retention, 3) for row in ran if row.name not in BASELINES and row.retention <= 1}
    far = (share for share in spent if all(abs(share - budget) > NEAR / 2 * budget for budget in budgets))
    return sorted(far, reverse=True)


def verdict(difference: Estimate, pictures: int, *, higher_is_better: bool = True) -> str:
    """Return the verdict on a difference by its 95 % interval: "better than", "worse than", "not told apart from"."""
    if not (difference.low > 0 or difference.high < 0) or pictures < FEWEST:
        return "not told apart from"
    if (difference.low > 0) == higher_is_better:
        return "better than"
    return "worse than"


def has_collapsed(row: TaskRow, full: TaskRow) -> bool:
    """Return whether less than a quarter of the full model's accuracy on a task is left.

    Args:
        row: A method's row of the task.
        full: The full model's row of the task.
    """
    return row.accuracy.value < LEFT * full.accuracy.value
