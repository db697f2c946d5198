"""Which setting is taken, by the pictures to choose with, and what it comes to on others."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from statistics import fmean, stdev

from foveate.contract.budget import decoder_depth
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.eval.evaluation import Questioning
from foveate.eval.pairing import FULL_MODEL, Row, figures_of, read_estimate
from foveate.eval.plan import Contender
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.tuning.tuned import HeldOut, points

FEWEST = 5
"""Pictures to choose with at least: the difference of two or three says nothing."""
DRAWS = 3
"""Random droppings that are averaged in the comparison."""


def best_of(asking: Questioning, settings: Iterable[Method], published: Method | None) -> tuple[Method, Method]:
    """The setting to take, and the best of the grid, by how near their answers are to the full model's.

    The best of many is partly luck, so the published setting stays unless the best is ahead by a standard error.

    Args:
        asking: About the pictures to choose with; all has been asked.
        settings: The grid.
        published: The published setting, if it meets the budget.
    """
    best = min(settings, key=lambda method: fmean(distances(asking, method)))
    if published is None:
        return best, best
    ahead = [other - own for own, other in zip(distances(asking, best), distances(asking, published), strict=True)]
    if len(ahead) >= FEWEST and fmean(ahead) > stdev(ahead) / math.sqrt(len(ahead)):
        return best, best
    return published, best


def distances(asking: Questioning, method: Method) -> list[float]:
    """How far the answers about each picture are from the full model's, mean over its questions."""
    log: Sequence[Row] = asking.log(method)
    means = []
    for _, rows in groupby(log, key=lambda row: row["picture"]):
        # 1 for another answer, and √KL of the first token: agreement alone changes more with the pictures.
        means.append(fmean((row["answer"] not in row["labels"]) + math.sqrt(row["kl"]) for row in rows))
    return means


def spent(asking: Questioning, method: Method, kind: str) -> float:
    """What answers spend on average: "tokens" a layer, the same as a share ("retention"), or a share of the "flops"."""
    rows: Sequence[Row] = asking.log(method)
    full: Sequence[Row] = asking.log(None)
    if kind == "tokens":
        return fmean(row["spent"] for row in rows)
    if kind == "retention":
        return fmean(row["spent"] / row["vision_tokens"] for row in rows)
    if any(row["flops"] is None for row in (*rows, *full)):
        raise SettingError("FLOPs of this model's tower or of this method are not counted: give tokens or a retention.")
    return fmean(row["flops"] / other["flops"] for row, other in zip(rows, full, strict=True))


# -- reporting ------------------------------------------------------------------------------------------------------


def comparison(asking: Questioning, published: Method | None, grid: Method, tuned: Method, size: int) -> list[HeldOut]:
    """The published setting, the best of the grid, the tuned one, and random and uniform at its schedule.

    Args:
        asking: About the pictures to report with.
        published: If it meets the budget.
        grid: The best of the grid.
        tuned: What was chosen.
        size: Vision tokens of the usual sample.
    """
    named = {"published": (published,)} if published is not None else {}
    named |= {"grid": (grid,), "tuned": (tuned,)}
    settings = [Contender(name, None, draws) for name, draws in named.items()]
    asking.ask([draw for setting in settings for draw in setting.draws], "Comparing on other pictures")
    tokens = spent(asking, tuned, "tokens")
    random = tuple(_control(tuned, Random(seed=seed), asking, size, tokens) for seed in range(DRAWS))
    settings.append(Contender("random, tuned schedule", None, random))
    uniform = _control(tuned, Uniform(), asking, size, tokens)
    settings.append(Contender("uniform, tuned schedule", None, (uniform,)))
    asking.ask((*random, uniform), "Comparing with random and uniform dropping")
    ran = []
    for setting in settings:
        logs: list[Sequence[Row]] = [asking.log(draw) for draw in setting.draws]
        # √KL in the place of KL: of a plain mean a few lost answers make all
        ran.append((setting, [[{**row, "kl": math.sqrt(row["kl"])} for row in log] for log in logs]))
    rows = [row for row in figures_of(asking.log(None), ran) if row["task"] is None and row["name"] != FULL_MODEL]
    return [_row_of(row, setting.draws[0]) for row, setting in zip(rows, settings, strict=True)]


def _control(method: Method, control: Random | Uniform, asking: Questioning, size: int, tokens: float) -> Method:
    """Random or uniform dropping at a method's schedule; before the decoder where that depends on the picture."""
    plan = method.plan(decoder_depth(asking.vlm.model), (size,))
    if plan is None:
        return replace(control, layers=(0,), tokens=tokens)
    return same_schedule(method, plan, size, control)


def _row_of(row: Row, method: Method) -> HeldOut:
    ahead = [read_estimate(pair, "agreement") for pair in row["paired"] if pair["name"] == "published"]
    return HeldOut(
        name=row["name"],
        method=method,
        tokens=row["tokens"],
        agreement=read_estimate(row, "agreement"),
        root=read_estimate(row, "kl"),
        ahead=ahead[0] if ahead else None,
    )


def untuned(asked: str, rows: Sequence[HeldOut], pictures: int, *, stays: bool) -> list[str]:
    """Whether the published schedule is as good as what tuning came to, on the pictures to report with.

    Args:
        asked: The method and its budget: "v2drop untuned at 64 tokens".
        rows: The comparison.
        pictures: How many pictures say so.
        stays: Whether the published schedule was chosen; its rival is then the best of the grid.
    """
    rival, what = "tuned", "the tuned setting"
    if stays:
        rival, what = "grid", "the best of the grid"
    (ahead,) = (row.ahead for row in rows if row.name == rival)
    if ahead is None or ahead.low > 0:
        return []
    verdict = f"as good here, as far as {pictures} pictures tell"
    if ahead.high < 0:
        verdict = "better"
    return [f"{asked} is {verdict}: {what} is {points(ahead, '+')} points of agreement ahead of it."]
