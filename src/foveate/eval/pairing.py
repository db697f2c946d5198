"""Turn logs of answers into rows of figures, with every setting paired with the full model on the same questions.

A log has one row of plain values per question, in the order of the questions:

    task, picture                the task; the picture (resampling is over pictures)
    answer, score                the answer; 1 for right, 0 for wrong, or a share; None if nothing is scored
    labels                       the answers that count as right; empty or missing if unknown
    spent, vision_tokens         mean vision tokens per decoder layer; vision tokens of the prompt
    flops, kl                    FLOPs to the first token; KL of the first token from the full model's, nats; or None
    again                        1 if a second look asked the full model again, 0 if not; None for other settings

The rows suit pandas, JSON and tables; see `figures_of`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np

from foveate.eval.plan import BASELINES, Contender
from foveate.plain.stats import Estimate, Numbers, Resampled, estimate, share

Row = Mapping[str, Any]
Log = Sequence[Row]
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
) -> list[dict[str, object]]:
    """Return all figures with their intervals: one row per setting, and one per setting and task.

    A column marked * has an interval (95 %) in two more columns, `…_low` and `…_high`. Unknown values are None. With
    fewer than five pictures, the two ends are None because the interval would mean nothing.

        name, budget             method or preset as requested; requested share or number of tokens
        task                     None for all questions together
        questions                number of questions
        tokens, retention        mean vision tokens per decoder layer, as spent; their share
        again                    share of questions that the full model was asked again; None without a second look
        flops                    share of the full model's FLOPs, from the pixels to the first token
        accuracy *               mean score, or the benchmark's figure
        commonest, commonest_label          score of always answering with the most frequent label; that label. Only in
                                 the full model's rows; None if labels are unknown or the figure is not a mean
        alike                    share of the full model's answers that are its most frequent one; in its rows
        share *, difference *    accuracy divided by the full model's; minus the full model's
        agreement *              share of answers that equal the full model's, word for word
        kl *                     mean KL of the first answer token from the full model's, nats
        minus_random *, minus_resize *      accuracy minus that of the control at the same spent cost
        paired                   for each earlier setting with the same budget or the same spent cost: its name, budget
                                 and tokens, and this setting's accuracy * and agreement * minus that setting's
        hard *, hard_questions   accuracy on questions that the full model gets right and Resize, at the same cost,
                                 wrong; their number
        draws                    accuracy of each draw, if there are several
        settings, note           settings of each draw; what is unusual about them
        infeasible, floor        why the budget cannot be met; the lowest possible share

    Columns from `share` on are in rows for all questions only. The last two are only for budgets that cannot be met.

    Args:
        full: The full model's log.
        ran: Each contender with the logs of its draws. A contender without logs is infeasible.
        aggregate: Computes the figure, if it is not the mean of scores.
        spends: The unit of budgets and of equal cost: "spent" (vision tokens) or "flops".
    """
    ran = list(ran)
    pairing = _Pairing(full, aggregate, spends)
    settings = [pairing.measure(contender, logs) for contender, logs in ran if logs]
    rows = [
        {**row, **pairing.commonest(row["task"])}
        for row in (pairing.row(pairing.full), *pairing.task_rows(pairing.full))
    ]
    for place, setting in enumerate(settings):
        rivals = {name: _rival(name, setting, settings) for name in RIVALS}
        rows.append({**pairing.compare(setting, rivals), "paired": pairing.pair(setting, settings[:place])})
        rows += pairing.task_rows(setting)
    for contender, logs in ran:
        if not logs:
            name = {"name": contender.name, "budget": contender.budget, "task": None}
            rows.append({**name, "infeasible": contender.infeasible, "floor": contender.floor})
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

    def row(self, setting: _Setting) -> dict[str, Any]:
        """Return the figures that need only a setting's own log."""
        numbers, contender = setting.numbers, setting.contender
        vision_tokens = numbers["vision_tokens"]
        # a question without vision tokens counts as retention 1
        shares = np.divide(numbers["spent"], vision_tokens, np.ones_like(vision_tokens), where=vision_tokens > 0)
        of_full = np.array([row.get("flops") for row in self._log], dtype=np.float64).sum()
        flops = float(numbers["flops"].sum() / of_full)
        if self._aggregate is None:
            accuracy = self._resampled.proportion(numbers["score"])
        else:
            accuracy = estimate(setting.figures)
        return {
            "name": contender.name,
            "budget": contender.budget,
            "task": None,
            "questions": len(self._log),
            "pictures": self._resampled.count,
            "tokens": round(setting.tokens, 3),
            "retention": round(float(shares.mean()), 5),
            "again": None if np.isnan(numbers["again"]).any() else round(float(numbers["again"].mean()), 5),
            "flops": None if np.isnan(flops) else round(flops, 5),
            **spread_out("accuracy", accuracy),
        }

    def task_rows(self, setting: _Setting) -> list[dict[str, object]]:
        """Return a row with the accuracy of each task; empty with an aggregate, which has no scores."""
        rows: list[dict[str, object]] = []
        for task, asked in self._tasks.items() if self._aggregate is None else ():
            score = np.where(asked, setting.numbers["score"], np.nan)
            rows.append(
                {
                    "name": setting.contender.name,
                    "budget": setting.contender.budget,
                    "task": task,
                    "questions": int(asked.sum()),
                    "tokens": round(float(setting.numbers["spent"][asked].mean()), 3),
                    **spread_out("accuracy", self._resampled.proportion(score)),
                }
            )
        return rows

    def commonest(self, task: str | None) -> dict[str, object]:
        """Return "commonest", "commonest_label" and "alike" of a task, or of all for None; see `figures_of`."""
        rows = [row for row in self._log if task in (None, row["task"])]
        label, share = _commonest([set(row.get("labels", ())) for row in rows])
        _, alike = _commonest([{row["answer"]} for row in rows])
        if self._aggregate is not None or not all(row.get("labels") for row in rows):
            return {"commonest": None, "commonest_label": None, "alike": alike}
        return {"commonest": share, "commonest_label": label, "alike": alike}

    def pair(self, setting: _Setting, others: Iterable[_Setting]) -> list[dict[str, object]]:
        """Compare a setting with others of the same budget or spent cost: "paired" of `figures_of`."""
        pairs = []
        for other in others:
            budget = other.contender.budget
            if (budget is None or budget != setting.contender.budget) and not _cost_alike(setting, other):
                continue
            agreement = self._resampled.mean(setting.numbers["agrees"] - other.numbers["agrees"])
            pair: dict[str, object] = {
                "name": other.contender.name,
                "budget": budget,
                "tokens": round(other.tokens, 3),
            }
            pair |= spread_out("accuracy", self._difference(setting, other))
            pairs.append(pair | spread_out("agreement", agreement))
        return pairs

    def compare(self, setting: _Setting, rivals: Mapping[str, _Setting | None]) -> dict[str, object]:
        """Compare a setting with the full model and its rivals. Return its row for all questions."""
        numbers, contender = setting.numbers, setting.contender
        hard, hard_questions = self._hard(setting, rivals["resize"])
        row = self.row(setting)
        caution = contender.draws[0].caution(row["retention"])
        return {
            **row,
            **spread_out("share", share(setting.figures, self.full.figures)),
            **spread_out("difference", self._difference(setting, self.full)),
            **spread_out("agreement", self._resampled.proportion(numbers["agrees"])),
            **spread_out("kl", None if np.isnan(numbers["kl"]).any() else self._resampled.mean(numbers["kl"])),
            **spread_out("minus_random", self._difference(setting, rivals["random"])),
            **spread_out("minus_resize", self._difference(setting, rivals["resize"])),
            **spread_out("hard", hard),
            "hard_questions": hard_questions,
            "draws": [round(draw, 5) for draw in setting.draws] if len(setting.draws) > 1 else [],
            "settings": [draw.to_dict() for draw in contender.draws],
            "note": "; ".join(filter(None, (contender.note, caution))),
        }

    def _difference(self, setting: _Setting, other: _Setting | None) -> Estimate | None:
        if other is None:
            return None
        return estimate(setting.figures - other.figures)

    def _hard(self, setting: _Setting, resized: _Setting | None) -> tuple[Estimate | None, int]:
        """Return the accuracy on questions that the full model gets right and Resize wrong, and their number.

        These are VTC-Bench's difficult samples, group A: Liao et al., arXiv:2510.07143. Questions that the full model
        gets wrong say nothing about dropping.
        """
        if resized is None:
            return None, 0
        hard = (self.full.numbers["score"] >= 0.5) & (resized.numbers["score"] < 0.5)  # False for NaN
        if not hard.any():
            return None, 0
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


def _cost_alike(setting: _Setting, other: _Setting) -> bool:
    """Return whether two settings spend the same within `NEAR`, in tokens or FLOPs."""
    return abs(other.cost - setting.cost) <= NEAR * setting.cost


def spread_out(name: str, figure: Estimate | None) -> dict[str, float | None]:
    """Return a figure as three columns: value, low and high. NaN becomes None."""
    ends = {} if figure is None else figure.to_dict()
    known = {end: None if value != value else value for end, value in ends.items()}  # NaN != NaN
    return {name: known.get("value"), f"{name}_low": known.get("low"), f"{name}_high": known.get("high")}


def read_estimate(row: Row, figure: str) -> Estimate:
    """Return a row's figure with its interval. Missing ends are NaN."""
    low, high = (row[f"{figure}_{end}"] for end in ("low", "high"))
    return Estimate(row[figure], nan if low is None else low, nan if high is None else high)


def shares_unmatched(rows: Iterable[Row]) -> list[float]:
    """Return the shares that methods spent and that no baseline is near, so that baselines can be run there."""
    ran = [row for row in rows if row["task"] is None and row["name"] != FULL_MODEL and "infeasible" not in row]
    asked = [row["budget"] for row in ran if row["name"] in BASELINES]
    spent = {round(row["retention"], 3) for row in ran if row["name"] not in BASELINES and row["retention"] <= 1}
    far = (share for share in spent if all(abs(share - budget) > NEAR / 2 * budget for budget in asked))
    return sorted(far, reverse=True)


def verdict(row: Row, figure: str, *, higher_is_better: bool = True) -> str:
    """Return the verdict on a difference by its 95 % interval: "better than", "worse than", "not told apart from"."""
    ends = read_estimate(row, figure)
    if not (ends.low > 0 or ends.high < 0) or row.get("pictures", FEWEST) < FEWEST:
        return "not told apart from"
    if (ends.low > 0) == higher_is_better:
        return "better than"
    return "worse than"


def has_collapsed(row: Row, full: Row) -> bool:
    """Return whether less than a quarter of the full model's accuracy on a task is left.

    Args:
        row: A method's row of the task.
        full: The full model's row of the task.
    """
    return bool(row["accuracy"] < LEFT * full["accuracy"])
