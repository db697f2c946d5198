"""Benchmarks under several settings, each paired with the full model on the same documents."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foveate.errors import BudgetError
from foveate.eval.cells import Cell, Contender, before_decoder
from foveate.eval.scores import Metric, Scores, TaskScores
from foveate.eval.setting import Setting
from foveate.eval.stats import Estimate, Resampled
from foveate.eval.summary import RIVALS, Outcome, Summary, nearest
from foveate.methods.grammar import read

__all__ = ["cells_of", "run_cells", "summarise_task"]

RESAMPLES = 1000
FEWER = 200
"""Resamples where a figure is no mean, so that the benchmark's own function runs on each."""

Numbers = NDArray[np.float64]
Run = Callable[[Setting], Scores]


def cells_of(
    contenders: Sequence[Contender], budgets: Sequence[tuple[str, float]], seeds: Sequence[int]
) -> list[Cell[Setting]]:
    """A cell for each contender and budget; the schedule is solved for each sample later.

    Args:
        contenders: What is compared.
        budgets: ("budget", tokens) or ("retention", share) each.
        seeds: Draws of a method that draws by lot.
    """
    found = []
    for one in contenders:
        asked = [(None, Setting(name=one.name))]
        if not one.named.settled:
            asked = [(value, Setting(name=one.name, **{kind: value})) for kind, value in budgets]  # type: ignore[arg-type,misc]
        for budget, base in asked:
            draws = tuple(replace(base, seed=seed) for seed in seeds) if one.named.drawn else (base,)
            found.append(Cell(one.name, budget, draws))
    return found


def run_cells(cells: Sequence[Cell[Setting]], run: Run) -> tuple[list[Cell[Setting]], dict[int, list[Scores]]]:
    """Run every cell: the cells, those that cannot be reached marked, and the scores of each one's draws by its place.

    A control that cannot meet its budget at its usual depth is cut before the decoder.
    """
    done: list[Cell[Setting]] = []
    scores: dict[int, list[Scores]] = {}
    for cell in cells:
        try:
            scores[len(done)] = [run(draw) for draw in cell.draws]
        except BudgetError as error:
            if before_decoder(read(cell.name)) is not None:
                early = tuple(replace(draw, settings={"layers": (0,)}) for draw in cell.draws)
                scores[len(done)] = [run(draw) for draw in early]
                cell = replace(cell, draws=early, note="cut before the decoder")
            else:
                cell = replace(cell, draws=(), infeasible=str(error), floor=error.floor)
        done.append(cell)
    return done, scores


def summarise_task(
    task: str, full: Scores, cells: Sequence[Cell[Setting]], scores: Mapping[int, Sequence[Scores]]
) -> Summary:
    """A task's figures with their intervals, all from the same resampled documents."""
    whole = full.tasks[task]
    metric = whole.metrics[whole.primary]
    draws = _drawn(metric)
    columns = {at: _mean([_values(one.tasks[task], whole.primary, draws) for one in of]) for at, of in scores.items()}
    base = _values(whole, whole.primary, draws)
    spent = {at: _spent([one.tasks[task] for one in of]) for at, of in scores.items()}
    resampled = Resampled([record["media"] or f"document {at}" for at, record in enumerate(whole.records)])
    outcomes = []
    for at, cell in enumerate(cells):
        if at not in scores:
            continue
        mine, tasks = columns[at], [one.tasks[task] for one in scores[at]]
        flops = _flops(tasks, whole)
        outcomes.append(
            Outcome(
                cell=cell,
                tokens=spent[at],
                retention=float(np.mean([one.retention for one in tasks])),
                flops=flops,
                accuracy=_estimate(mine),
                share=None if (base == 0).any() else _estimate(mine / base),
                difference=_estimate(mine - base),
                agreement=resampled.mean(np.mean([_agrees(one, whole) for one in tasks], axis=0)),
                kl=resampled.mean(kl) if (kl := _divergences(tasks)) is not None else None,
                tasks={},
                against={
                    rival: _estimate(mine - columns[other])
                    for rival in RIVALS
                    if rival != cell.name and (other := nearest(spent[at], _of(rival, cells, spent))) is not None
                },
                draws=tuple(float(np.mean(one.metrics[whole.primary].value)) for one in tasks)
                if len(tasks) > 1
                else (),
            )
        )
    return Summary(
        counts={f"{task}, {whole.primary}": len(whole.documents)},
        pictures=max(metric.groups) + 1,
        vision_tokens=_spent([whole]),
        accuracy=_estimate(base),
        tasks={},
        outcomes=tuple(outcomes),
        infeasible=tuple(cell for cell in cells if not cell.draws),
        unit=100.0 if abs(metric.value) <= 1 else 1.0,
    )


def _drawn(metric: Metric) -> list[list[int]]:
    """How often each group of documents is drawn, a resample each."""
    count = max(metric.groups) + 1
    resamples = FEWER if metric.factor is None else RESAMPLES
    drawn: list[list[int]] = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples).tolist()
    return drawn


def _values(task: TaskScores, primary: str, draws: Sequence[Sequence[int]]) -> Numbers:
    """The figure itself, then that of every resample."""
    metric = task.metrics[primary]
    return np.array([metric.value, *(metric.over(counts) for counts in draws)])


def _mean(columns: Sequence[Numbers]) -> Numbers:
    found: Numbers = np.mean(columns, axis=0)
    return found


def _estimate(found: Numbers) -> Estimate:
    low, high = np.quantile(found[1:], [0.025, 0.975])
    return Estimate(float(found[0]), float(low), float(high))


def _spent(tasks: Sequence[TaskScores]) -> float:
    return float(np.mean([record["spent"] for one in tasks for record in one.records]))


def _agrees(task: TaskScores, whole: TaskScores) -> Numbers:
    """1 for each document whose answer is the full model's, word for word."""
    pairs = zip(task.records, whole.records, strict=True)
    return np.array([float(mine["answer"] == theirs["answer"]) for mine, theirs in pairs])


def _divergences(tasks: Sequence[TaskScores]) -> Numbers | None:
    """KL of each document's first answer token from the full model's, nats, mean over draws; None if one is unknown."""
    rows = [[record.get("kl") for record in one.records] for one in tasks]
    return None if any(None in row for row in rows) else np.mean(np.array(rows, dtype=np.float64), axis=0)


def _flops(tasks: Sequence[TaskScores], whole: TaskScores) -> float | None:
    mine = [record["flops"] for one in tasks for record in one.records]
    theirs = [record["flops"] for record in whole.records]
    return None if None in mine or None in theirs else float(np.sum(mine) / (len(tasks) * np.sum(theirs)))


def _of(name: str, cells: Sequence[Cell[Setting]], spent: Mapping[int, float]) -> dict[int, float]:
    """What the cells of that name truly spent, by their place."""
    return {at: spent[at] for at, cell in enumerate(cells) if cell.name == name and at in spent}
