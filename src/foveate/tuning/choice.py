"""Choose a setting on some pictures, and compare it with others on the held-out pictures."""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby
from statistics import fmean, stdev

from foveate.contract.budget import decoder_depth
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.eval.evaluation import Questioning
from foveate.eval.pairing import Log, figures_of
from foveate.eval.plan import Contender
from foveate.eval.quality_rows import MethodRow
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.tuning.tuned import HeldOut

FEWEST = 5
"""Minimum pictures to choose with. A difference on two or three means nothing."""
DRAWS = 3
"""Seeds of random dropping that are averaged in the comparison."""


def best_of(asking: Questioning, settings: Iterable[Method], published: Method | None) -> tuple[Method, Method]:
    """Return the setting to use, and the best of the grid, by the distance of their answers from the full model's.

    The best of many settings is partly luck. So the published setting is used unless the best one is ahead by more than
    a standard error, on at least `FEWEST` pictures.

    Args:
        asking: The questions about the pictures to choose with, already answered.
        settings: The grid.
        published: The published setting, or None if it does not meet the budget.
    """
    best = min(settings, key=lambda method: fmean(distances(asking, method)))
    if published is None:
        return best, best
    ahead = [other - own for own, other in zip(distances(asking, best), distances(asking, published), strict=True)]
    if len(ahead) >= FEWEST and fmean(ahead) > stdev(ahead) / math.sqrt(len(ahead)):
        return best, best
    return published, best


def distances(asking: Questioning, method: Method) -> list[float]:
    """Return each picture's mean distance of the answers from the full model's."""
    means = []
    for _, rows in groupby(asking.log(method), key=lambda row: row["picture"]):
        # 1 for a different answer, plus √KL of the first token. Agreement alone varies more between pictures.
        means.append(fmean((row["answer"] not in row["labels"]) + math.sqrt(row["kl"]) for row in rows))
    return means


def mean_spent(asking: Questioning, method: Method, kind: str) -> float:
    """Return the mean cost of the answers.

    Args:
        asking: The answered questions.
        method: The setting.
        kind: "tokens" (mean vision tokens per layer), "retention" (their share) or "flops" (share of the full
            model's).

    Raises:
        SettingError: If FLOPs are not counted for this model.
    """
    rows, full = asking.log(method), asking.log(None)
    if kind == "tokens":
        return fmean(row["spent"] for row in rows)
    if kind == "retention":
        return fmean(row["spent"] / row["vision_tokens"] for row in rows)
    if any(row["flops"] is None for row in (*rows, *full)):
        raise SettingError("FLOPs of this model's tower are not counted: give tokens or retention.")
    return fmean(row["flops"] / other["flops"] for row, other in zip(rows, full, strict=True))


# -- reporting ------------------------------------------------------------------------------------------------------


def comparison(asking: Questioning, published: Method | None, grid: Method, tuned: Method, size: int) -> list[HeldOut]:
    """Compare the published setting, the best of the grid and the tuned setting on the held-out pictures.

    The controls are random and uniform dropping at the tuned setting's schedule.

    Args:
        asking: The questions about the held-out pictures.
        published: The published setting, or None if it does not meet the budget.
        grid: The best of the grid.
        tuned: The chosen setting.
        size: Vision tokens of the most common sample.
    """
    named = {"published": (published,)} if published is not None else {}
    named |= {"grid": (grid,), "tuned": (tuned,)}
    asking.ask([draw for draws in named.values() for draw in draws], "Comparing on other pictures")
    tokens = mean_spent(asking, tuned, "tokens")
    settings = [Contender(name, tokens, draws) for name, draws in named.items()]  # all have tuning's budget
    random = tuple(_control(tuned, Random(seed=seed), asking, size, tokens) for seed in range(DRAWS))
    settings.append(Contender("random, tuned schedule", tokens, random))
    uniform = _control(tuned, Uniform(), asking, size, tokens)
    settings.append(Contender("uniform, tuned schedule", tokens, (uniform,)))
    asking.ask((*random, uniform), "Comparing with random and uniform dropping")
    ran = []
    for setting in settings:
        logs: list[Log] = [asking.log(draw) for draw in setting.draws]
        # √KL instead of KL: a few wrong answers would dominate the mean of KL
        ran.append((setting, [[{**row, "kl": math.sqrt(row["kl"])} for row in log] for log in logs]))
    rows = [row for row in figures_of(asking.log(None), ran) if isinstance(row, MethodRow)]
    return [_row_of(row, setting.draws[0]) for row, setting in zip(rows, settings, strict=True)]


def _control(method: Method, control: Random | Uniform, asking: Questioning, size: int, tokens: float) -> Method:
    """Return random or uniform dropping at a method's schedule.

    If the schedule depends on the picture, it drops before the decoder, to the mean count of tokens.
    """
    plan = method.plan(decoder_depth(asking.vlm.model), (size,))
    if plan is None:
        return replace(control, layers=(0,), tokens=tokens)
    return same_schedule(method, plan, size, control)


def _row_of(row: MethodRow, method: Method) -> HeldOut:
    ahead = next((pair.agreement for pair in row.paired if pair.name == "published"), None)
    return HeldOut(name=row.name, method=method, tokens=row.tokens, agreement=row.agreement, root=row.kl, ahead=ahead)
