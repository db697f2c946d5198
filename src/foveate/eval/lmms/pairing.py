"""Benchmarks under several settings: which runs there are, and what they come to beside the full model's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from foveate.contract.method import Method
from foveate.contract.naming import before_decoder, draws, parse
from foveate.errors import BudgetError
from foveate.eval.cells import EARLY, Cell
from foveate.eval.lmms.scores import Metric, Scores, TaskScores
from foveate.eval.lmms.setting import Setting
from foveate.eval.pairing import Column, summarise
from foveate.eval.summary import Summary

__all__ = ["cells_of", "run_cells", "summarise_task"]

RESAMPLES = 1000
FEWER = 200
"""Resamples where a figure is no mean, so that the benchmark's own function runs on each."""

Run = Callable[[Setting], Scores]


def cells_of(
    contenders: Mapping[str, Method], budgets: Sequence[tuple[str, float]], seeds: Sequence[int]
) -> list[Cell[Setting]]:
    """A cell for each contender and budget; the schedule is solved for each sample later.

    Args:
        contenders: What is compared, by name.
        budgets: ("budget", tokens) or ("retention", share) each.
        seeds: Draws of a method that draws at random.
    """
    cells: list[Cell[Setting]] = []
    for name, method in contenders.items():
        if not method.open:
            cells.append(Cell(name, None, _draws(Setting(name=name), draws(method), seeds)))
            continue
        for kind, value in budgets:
            setting = Setting(name=name, **{kind: value})  # type: ignore[arg-type]
            cells.append(Cell(name, value, _draws(setting, draws(method), seeds)))
    return cells


def _draws(setting: Setting, drawn: bool, seeds: Sequence[int]) -> tuple[Setting, ...]:
    """A setting a seed where it draws at random, else one."""
    if not drawn:
        return (setting,)
    return tuple(replace(setting, seed=seed) for seed in seeds)


def run_cells(cells: Sequence[Cell[Setting]], run: Run) -> tuple[list[Cell[Setting]], list[list[Scores]]]:
    """Run every cell: the cells, those that cannot be reached marked, and the scores of each one's draws.

    A control that cannot meet its budget at its usual depth is cut before the decoder.
    """
    done, scores = [], []
    for cell in cells:
        ran, of_draws = _run_cell(cell, run)
        done.append(ran)
        scores.append(of_draws)
    return done, scores


def _run_cell(cell: Cell[Setting], run: Run) -> tuple[Cell[Setting], list[Scores]]:
    try:
        return cell, [run(draw) for draw in cell.draws]
    except BudgetError as error:
        if before_decoder(parse(cell.name)) is None:
            return replace(cell, draws=(), infeasible=str(error), floor=error.floor), []
    early = tuple(replace(draw, settings={"layers": (0,)}) for draw in cell.draws)
    return replace(cell, draws=early, note=EARLY), [run(draw) for draw in early]


def summarise_task(
    task: str, full: Scores, cells: Sequence[Cell[Setting]], scores: Sequence[Sequence[Scores]], **about: Any
) -> Summary:
    """A task's figures with their intervals, all from the same resampled documents.

    Args:
        task: The harness's name.
        full: The full model's scores.
        cells, scores: From `run_cells`.
        about: `title`, `figure` and `origin` of the summary.
    """
    base = full.tasks[task]
    metric = base.metrics[base.primary]
    resamples = _resamples(metric)
    columns = [[_column(draw.tasks[task], base, resamples) for draw in draws] for draws in scores]
    return summarise(
        [f"{task}, {base.primary}"] * len(base.documents),
        base.media,
        _column(base, base, resamples),
        cells,
        columns,
        higher_is_better=metric.higher_is_better,
        unit=100.0 if abs(metric.value) <= 1 else 1.0,
        **about,
    )


def _column(task: TaskScores, full: TaskScores, resamples: Sequence[Sequence[int]]) -> Column:
    """What a setting came to on a task."""
    metric = task.metrics[full.primary]
    figures = [metric.value, *(metric.over(counts) for counts in resamples)]
    return Column.of(task.records, full.records, figures=figures)


def _resamples(metric: Metric) -> list[list[int]]:
    """How often each group of documents is drawn, a resample each."""
    count = max(metric.groups) + 1
    number = FEWER if metric.factor is None else RESAMPLES
    chances = np.full(count, 1 / count)
    counts: list[list[int]] = np.random.default_rng(0).multinomial(count, chances, number).tolist()
    return counts
