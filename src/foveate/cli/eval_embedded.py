"""`foveate eval` on the embedded tasks."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from foveate._loading import Loaded
from foveate.cli.eval_options import EvalOptions
from foveate.cli.eval_tables import footnotes, table, task_table
from foveate.cli.finish import finish
from foveate.cli.loading import load
from foveate.cli.options import ModelOptions
from foveate.cli.prompt import fitting
from foveate.cli.screen import busy, counted, note
from foveate.cli.usage import UsageError
from foveate.eval import figure, provenance
from foveate.eval.answering import vision_counts
from foveate.eval.cells import BASELINES, Cell, Contender
from foveate.eval.pictures import Asked, check_tasks, questions
from foveate.eval.run import FULL, key_of, outstanding, run, sample
from foveate.eval.store import Store, home
from foveate.eval.summary import Column, Summary, summarise, unmatched
from foveate.methods.base import Method

__all__ = ["run_embedded"]

BUDGETS = (1 / 3, 2 / 9, 1 / 9)  # 192, 128 and 64 of LLaVA-1.5's 576
WHAT = "exact match on held-out questions about generated pictures, each paired with the full model's"


def run_embedded(options: EvalOptions, tasks: Sequence[str], contenders: Sequence[Contender]) -> None:
    """Ask, summarise, print, and write what was asked for."""
    tasks = check_tasks(tasks)
    loaded = load(options.models)
    with busy("Drawing pictures"):
        asked = questions(tasks, options.questions, options.seed)
        inputs = sample(loaded.model, loaded.processor, asked[0])
        (count,) = vision_counts(loaded.model.config, inputs)  # all pictures have the same size
    budgets = options.retention or tuple(tokens / count for tokens in options.budget) or BUDGETS
    if max(budgets) > 1:
        raise UsageError(f"--budget {max(options.budget):g}: the pictures have {count} vision tokens.")
    conditions = provenance.conditions(loaded) | {"max_new_tokens": options.models.max_new_tokens} | options.stamp()
    store = Store(options.cache or home(), conditions)

    def cells(contenders: Sequence[Contender], budgets: Sequence[float]) -> list[Cell[Method]]:
        each = (one.cells(loaded.model, budgets, count, range(options.draws)) for one in contenders)
        return [cell for cells in each for cell in cells]

    chosen = cells(contenders, budgets)
    with fitting(loaded, inputs):
        summary = _answered(options, loaded, asked, chosen, store, "Answering")
    if not options.no_baselines and (spent := unmatched(summary)):
        chosen += cells([Contender.of(name) for name in BASELINES], spent)
        summary = _answered(options, loaded, asked, chosen, store, "Answering: controls at what was truly spent")
    values: dict[str, Any] = {
        "what": WHAT,
        "model": loaded.to_dict() | {"weights": conditions["weights"]},
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "seed": options.seed,
        "draws": options.draws,
        "max_new_tokens": options.models.max_new_tokens,
        **summary.to_dict(),
    }
    title = f"{loaded.name}: {sum(summary.counts.values())} questions about {summary.pictures} pictures"
    lines = footnotes(summary)
    if options.outputs.figure is not None:
        values["figure"] = str(options.outputs.figure)
        lines.append(f"Picture: {options.outputs.figure}")
    shown = Group(table(summary, title), task_table(summary), *map(Text, lines))
    finish(values, shown, lambda: figure.draw(summary, title), options.outputs)


def _answered(
    options: EvalOptions,
    loaded: Loaded,
    asked: Sequence[Asked],
    cells: Sequence[Cell[Method]],
    store: Store,
    doing: str,
) -> Summary:
    """Every figure of these cells, after asking what the store does not know."""
    methods = [draw for cell in cells for draw in cell.draws]
    work = outstanding(asked, methods, store)
    left, total = sum(map(len, work)), len(asked) * (1 + len(methods))
    if left < total:
        note(f"{total - left} of {total} answers are known already, from {store.path}")
    with counted(doing, left) as progress:
        run(
            partial(_pair, options.models),
            work,
            store,
            max_new_tokens=options.models.max_new_tokens,
            jobs=options.processes(loaded.model.device.type),
            advance=lambda done: progress.advance(progress.task_ids[0], done),
        )
    return _summary(asked, cells, store)


def _pair(models: ModelOptions) -> tuple[Any, Any]:
    """Model and processor; called once in every process."""
    loaded = load(models)
    return loaded.model, loaded.processor


def _summary(asked: Sequence[Asked], cells: Sequence[Cell[Method]], store: Store) -> Summary:
    """Every figure of a run whose answers the store has."""
    full = [store.get(FULL, one.key) for one in asked]

    def column(method: Method | None) -> Column:
        rows = [store.get(key_of(method), one.key) or {} for one in asked]
        pairs = zip(rows, asked, full, strict=True)
        marks = [
            (row["answer"] == one.question.answer, row["answer"] == (whole or {})["answer"])
            for row, one, whole in pairs
        ]
        number = {
            name: np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=np.float64)
            for name in ("kl", "spent", "vision_tokens", "flops")
        }
        score, agrees = np.array(marks, dtype=np.float64).T
        return Column(score=score, agrees=agrees, **number)

    tasks, groups = [one.question.task for one in asked], [one.picture for one in asked]
    return summarise(tasks, groups, cells, column)
