"""`foveate eval --tasks pope,textvqa`: benchmarks by name, through lmms-eval."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from rich.console import Group
from rich.text import Text

from foveate.cli.eval_options import EvalOptions
from foveate.cli.eval_tables import footnotes, table
from foveate.cli.finish import finish
from foveate.cli.loading import load
from foveate.cli.screen import counted, note
from foveate.eval import figure, provenance
from foveate.eval.answerer import Conduct
from foveate.eval.benchmarking import cells_of, run_cells, summarise_task
from foveate.eval.cells import Contender
from foveate.eval.harness import Options, check_names, run
from foveate.eval.scores import Scores
from foveate.eval.setting import Setting
from foveate.eval.store import Store, home
from foveate.viz import stack

__all__ = ["run_benchmarks"]

BUDGETS = (("retention", 1 / 3), ("retention", 2 / 9), ("retention", 1 / 9))


def run_benchmarks(options: EvalOptions, names: Sequence[str], contenders: Sequence[Contender]) -> None:
    """Run every benchmark under every setting, print a table each, and write what was asked for."""
    resolved = check_names(names, options.include)
    note("benchmarks: " + ", ".join(name if name == task else f"{name} = {task}" for name, task in resolved.items()))
    conduct = Conduct(protocol=options.protocol, batch_size=options.batch_size, most_frames=options.frames)
    asked = tuple(("budget", tokens) for tokens in options.budget)
    asked = asked or tuple(("retention", share) for share in options.retention) or BUDGETS
    cells = cells_of(contenders, asked, range(options.draws))
    loaded = load(options.models)
    conditions = conduct.conditions(loaded) | options.stamp()
    store = Store(options.cache or home(), conditions)
    settings = Options(conduct=conduct, limit=options.limit, include=options.include)
    if len(store):
        note(f"{len(store)} answers are known already, from {store.path}")
    runs = 1 + sum(len(cell.draws) for cell in cells)
    number, documents = 0, None

    def measured(setting: Setting | None) -> Scores:
        nonlocal number, documents
        number += 1
        what = "the full model" if setting is None else setting.name
        with counted(f"Run {number} of {runs}: {what}", documents) as progress:
            scores = run(
                loaded,
                names,
                None if setting is None else setting.choice(loaded.model.config),
                options=settings,
                store=store,
                advance=lambda done: progress.advance(progress.task_ids[0], done),
            )
        documents = sum(len(task.documents) for task in scores.tasks.values())
        return scores

    full = measured(None)
    cells, scores = run_cells(cells, measured)
    summaries = {task: summarise_task(task, full, cells, scores) for task in full.tasks}
    told = {
        task: {"metric": full.tasks[task].primary, "version": full.tasks[task].version, **summary.to_dict()}
        for task, summary in summaries.items()
    }
    each = [[one.to_dict() for one in scores.get(at, [])] for at in range(len(cells))]
    values: dict[str, Any] = {
        "what": "benchmarks through lmms-eval, each setting paired with the full model on the same documents",
        "model": loaded.to_dict() | {"weights": conditions["weights"]},
        "versions": provenance.versions() | {"lmms_eval": full.harness},
        "commit": provenance.commit(),
        "protocol": full.protocol,
        "limit": options.limit,
        "names": dict(full.resolved),
        "tasks": told,
        "harness": {"full": full.to_dict(), "cells": each},
    }
    titles = {
        task: f"{loaded.name} on {task}: {full.tasks[task].primary}, {len(full.tasks[task].documents)} documents, "
        f"protocol {full.protocol}"
        for task in summaries
    }
    lines = list(dict.fromkeys(line for summary in summaries.values() for line in footnotes(summary)))
    if options.outputs.figure is not None:
        values["figure"] = str(options.outputs.figure)
        lines.append(f"Picture: {options.outputs.figure}")
    shown = Group(*(table(summary, titles[task], "Score") for task, summary in summaries.items()), *map(Text, lines))
    finish(
        values,
        shown,
        partial(stack, [("", figure.draw(one, titles[task])) for task, one in summaries.items()]),
        options.outputs,
    )
