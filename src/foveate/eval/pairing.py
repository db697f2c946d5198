"""From logs of answers to rows of figures: every setting paired with the full model on the same questions.

A log has a plain row for each question, in the questions' order:

    task, picture, seed          what kind of question; those about one picture share its luck; what drew it, or None
    answer, score                what was answered; 1 for right, 0 for wrong or a share; None where nothing is scored
    labels                       what counts as right; none, or no such column, where it is not known
    spent, vision_tokens         vision tokens a decoder layer processed, mean over layers; those of the prompt
    flops, kl                    to the first token; nats from the full model's first token; None where not known
    again                        1 where a second look asked the full model again, 0 where not; None of others

What comes out is for pandas, JSON and tables alike: see `figures_of`.
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
"""A benchmark's figure that is no mean of scores, of rows of a log."""

FULL_MODEL = "full model"
RIVALS = ("random", "resize")
"""What every method is compared with, at the same true retention."""
NEAR = 0.1
"""How far apart two retentions may be, as a share of one, to count as the same: grids come in steps."""
FEWEST = 6
"""Pictures that can tell two methods apart: of five that all point one way, a sign test has p = 2 / 2⁵ = 0.06."""
LEFT = 0.25
"""The share of the full model's accuracy on a task below which the task has collapsed."""
NUMBERS = ("score", "kl", "spent", "vision_tokens", "flops", "again")


def figures_of(
    full: Log,
    ran: Iterable[tuple[Contender, Sequence[Log]]],
    aggregate: Aggregate | None = None,
    spends: Literal["spent", "flops"] = "spent",
) -> list[dict[str, object]]:
    """Every figure with its interval, all over the same pictures: a row for each setting and each task.

    The columns; one with an interval has two more, `…_low` and `…_high` (95 %), and None where it is not known. These
    two are None where fewer than five pictures count: the interval would say nothing.

        name, budget             method or preset as it was asked for; share, or tokens, as it was asked for
        task                     None for all questions together
        questions                how many they are
        tokens, retention        vision tokens a decoder layer processed, mean, and as a share: what was truly spent
        again                    share of the questions that the full model was asked again; None without a second look
        flops                    share of the full model's, from the pixels to the first token
        accuracy *               mean score, or the benchmark's figure
        commonest, commonest_label          what the label that most questions share would score alone, and which it is;
                                 in the full model's rows, None where labels are not known or the figure is no mean
        alike                    share of questions that the full model gives its commonest answer; in its rows
        asked, right             of each seed: the questions, and the right answers in all draws; for rows with a task
        share *, difference *    accuracy as a share of the full model's; minus it
        agreement *              share of answers that are the full model's, word for word
        kl *                     of the first answer token from the full model's, mean, nats
        minus_random *, minus_resize *      accuracy minus theirs at the same true retention
        paired                   beside each setting before it that was asked for the same budget or truly cost as much:
                                 its name, budget and tokens, and accuracy * and agreement * minus its own
        hard *, hard_questions   accuracy where the full model is right and Resize, at as many tokens, wrong; how many
        draws                    accuracy of each draw, where there are several
        settings, note           of each draw; what is unusual about them
        infeasible, floor        why the budget cannot be met; the lowest share that can

    Those from `share` on are for all questions only, and the last two for budgets that cannot be met.

    Args:
        full: The full model's log.
        ran: Every contender with the logs of its draws; a contender without any is infeasible.
        aggregate: Gives the figure, where it is no mean of scores.
        spends: What budgets are of, and rivals spend as much of: "spent", vision tokens, or "flops".
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
        contender: What was run.
        numbers: (questions,) of each column of numbers and of "agrees", mean over draws; NaN where it is not known.
        figures: (1 + resamples,) the accuracy, then that of every resample.
        draws: The accuracy of each draw.
        cost: What budgets are of, mean.
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
    """The full model on some questions, and what other settings are beside it."""

    def __init__(self, log: Log, aggregate: Aggregate | None, spends: str) -> None:
        seeds: list[Any] = [row.get("seed") for row in log]
        drawn = None not in seeds
        self._log, self._aggregate, self._spends = log, aggregate, spends
        self._seeds = [np.array(seeds) == seed for seed in dict.fromkeys(seeds)] if drawn else []
        self._resampled = Resampled([row["picture"] for row in log])
        tasks = np.array([row["task"] for row in log])
        self._tasks = {str(task): tasks == task for task in dict.fromkeys(tasks)}  # each (questions,)
        self.full = self.measure(Contender(FULL_MODEL, None, ()), [log])

    def measure(self, contender: Contender, logs: Sequence[Log]) -> _Setting:
        """A contender's answers as numbers, paired with the full model's."""
        columns = [_numbers(log, self._log) for log in logs]
        if self._aggregate is None:
            figures = [self._resampled.means(column["score"]) for column in columns]
        else:
            figures = [self._resampled.over(log, self._aggregate) for log in logs]
        means = {name: np.mean([column[name] for column in columns], axis=0) for name in columns[0]}
        draws, cost = [float(drawn[0]) for drawn in figures], float(means[self._spends].mean())
        return _Setting(contender, means, np.mean(figures, axis=0), draws, cost)

    def row(self, setting: _Setting) -> dict[str, Any]:
        """What a setting's log alone says."""
        numbers, contender = setting.numbers, setting.contender
        vision_tokens = numbers["vision_tokens"]
        # 1 for a question without any vision tokens
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
        """The accuracy of each task; nothing where there are no scores."""
        rows = []
        for task, asked in self._tasks.items() if self._aggregate is None else ():
            score = np.where(asked, setting.numbers["score"], np.nan)
            row: dict[str, object] = {
                "name": setting.contender.name,
                "budget": setting.contender.budget,
                "task": task,
                "questions": int(asked.sum()),
                "tokens": round(float(setting.numbers["spent"][asked].mean()), 3),
                **spread_out("accuracy", self._resampled.proportion(score)),
            }
            if self._seeds:
                scores = setting.numbers["score"] * len(setting.draws)
                row["asked"] = [int((asked & of_seed).sum()) for of_seed in self._seeds]
                row["right"] = [round(float(scores[asked & of_seed].sum())) for of_seed in self._seeds]
            rows.append(row)
        return rows

    def commonest(self, task: str | None) -> dict[str, object]:
        """What the commonest label, and the commonest answer, of a task (None: of all) come to; see `figures_of`."""
        rows = [row for row in self._log if task in (None, row["task"])]
        label, share = _commonest([set(row.get("labels", ())) for row in rows])
        _, alike = _commonest([{row["answer"]} for row in rows])
        if self._aggregate is not None or not all(row.get("labels") for row in rows):
            return {"commonest": None, "commonest_label": None, "alike": alike}
        return {"commonest": share, "commonest_label": label, "alike": alike}

    def pair(self, setting: _Setting, others: Iterable[_Setting]) -> list[dict[str, object]]:
        """A setting beside others that were asked for the same budget or truly cost as much; see `figures_of`."""
        pairs = []
        for other in others:
            if other.contender.budget != setting.contender.budget and not _cost_alike(setting, other):
                continue
            agreement = self._resampled.mean(setting.numbers["agrees"] - other.numbers["agrees"])
            pair: dict[str, object] = {
                "name": other.contender.name,
                "budget": other.contender.budget,
                "tokens": round(other.tokens, 3),
            }
            pair |= spread_out("accuracy", self._difference(setting, other))
            pairs.append(pair | spread_out("agreement", agreement))
        return pairs

    def compare(self, setting: _Setting, rivals: Mapping[str, _Setting | None]) -> dict[str, object]:
        """A setting beside the full model and its rivals."""
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
        """Accuracy on the questions that the full model gets right and Resize wrong, and how many these are.

        VTC-Bench's difficult samples, group A: Liao et al., arXiv:2510.07143. What the full model gets wrong says
        nothing about dropping.
        """
        if resized is None:
            return None, 0
        hard = (self.full.numbers["score"] >= 0.5) & (resized.numbers["score"] < 0.5)  # NaN is neither
        if not hard.any():
            return None, 0
        return self._resampled.proportion(np.where(hard, setting.numbers["score"], np.nan)), int(hard.sum())


def _commonest(texts: Sequence[Set[str]]) -> tuple[str | None, float]:
    """Of a set of texts for each question the one that is in most of them, and in what share."""
    counts = Counter(text for of_question in texts for text in sorted(of_question))
    text, count = max(counts.items(), key=lambda item: item[1], default=(None, 0))
    return text, round(count / len(texts), 5)


def _numbers(log: Log, full: Log) -> dict[str, Numbers]:
    """(questions,) of each column of numbers, and 1 where the answer is the full model's, word for word."""
    columns = {name: np.array([row.get(name) for row in log], dtype=np.float64) for name in NUMBERS}
    agrees = [row["answer"] == other["answer"] for row, other in zip(log, full, strict=True)]
    return {**columns, "agrees": np.array(agrees, dtype=np.float64)}


def _rival(name: str, setting: _Setting, settings: Sequence[_Setting]) -> _Setting | None:
    """The setting of this name that truly cost as much; None where there is none."""
    if setting.contender.name == name:
        return None
    rivals = [other for other in settings if other.contender.name == name]
    nearest = min(rivals, key=lambda other: abs(other.cost - setting.cost), default=None)
    if nearest is None or not _cost_alike(setting, nearest):
        return None
    return nearest


def _cost_alike(setting: _Setting, other: _Setting) -> bool:
    """Whether another setting truly spends as much, of tokens or of FLOPs."""
    return abs(other.cost - setting.cost) <= NEAR * setting.cost


def spread_out(name: str, figure: Estimate | None) -> dict[str, float | None]:
    """A figure as three columns; what is no number is not known."""
    ends = {} if figure is None else figure.to_dict()
    known = {end: None if value != value else value for end, value in ends.items()}
    return {name: known.get("value"), f"{name}_low": known.get("low"), f"{name}_high": known.get("high")}


def read_estimate(row: Row, figure: str) -> Estimate:
    """A figure of a row with its interval, whose ends are NaN where they say nothing."""
    low, high = (row[f"{figure}_{end}"] for end in ("low", "high"))
    return Estimate(row[figure], nan if low is None else low, nan if high is None else high)


def shares_unmatched(rows: Iterable[Row]) -> list[float]:
    """Shares that methods truly spend where no baseline was run near by, for baselines to be run at."""
    ran = [row for row in rows if row["task"] is None and row["name"] != FULL_MODEL and "infeasible" not in row]
    asked = [row["budget"] for row in ran if row["name"] in BASELINES]
    spent = {round(row["retention"], 3) for row in ran if row["name"] not in BASELINES and row["retention"] <= 1}
    far = (share for share in spent if all(abs(share - budget) > NEAR / 2 * budget for budget in asked))
    return sorted(far, reverse=True)


def verdict(row: Row, figure: str, *, higher_is_better: bool = True) -> str:
    """What a difference in a row says, by its 95 % interval: "better than", "worse than" or "not told apart from"."""
    ends = read_estimate(row, figure)
    if not (ends.low > 0 or ends.high < 0) or row.get("pictures", FEWEST) < FEWEST:
        return "not told apart from"
    if (ends.low > 0) == higher_is_better:
        return "better than"
    return "worse than"


def has_collapsed(row: Row, full: Row) -> bool:
    """Whether less than a quarter of the full model's accuracy on a task is left.

    Args:
        row: A method's, of the task.
        full: The full model's.
    """
    left: bool = row["accuracy"] < LEFT * full["accuracy"]
    return left
