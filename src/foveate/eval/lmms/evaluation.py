"""`evaluate`: benchmarks by name under several methods, each setting paired with the full model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate._versions import commit, versions
from foveate.ask.vlm import VLM
from foveate.eval.lmms.harness import Options, check_names, run
from foveate.eval.lmms.pairing import cells_of, run_cells, summarise_task
from foveate.eval.lmms.scores import Scores
from foveate.eval.lmms.setting import Choice, Setting
from foveate.eval.plan import Plan
from foveate.eval.store import Answers
from foveate.eval.summary import Summary, sheets
from foveate.runs.listener import Listener

__all__ = ["Report", "evaluate"]

WHAT = "benchmarks through lmms-eval, each setting paired with the full model on the same documents"


@dataclass(frozen=True, repr=False)
class Report:
    """What a run of several benchmarks found.

    Attributes:
        summaries: All figures of each task, by the harness's name.
        origin: What they depend on, as plain values.
        full: The harness's own figures of the full model.
        scores: The harness's own figures of each cell's draws.
    """

    summaries: Mapping[str, Summary]
    origin: Mapping[str, Any]
    full: Scores
    scores: Sequence[Sequence[Scores]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        cells = [[draw.to_dict() for draw in draws] for draws in self.scores]
        return {
            **self.origin,
            "tasks": {task: summary.to_dict() for task, summary in self.summaries.items()},
            "harness": {"full": self.full.to_dict(), "cells": cells},
        }

    def __repr__(self) -> str:
        return f"Report({', '.join(self.summaries)})"

    def _repr_html_(self) -> str:
        return "".join(sheet._repr_html_() for sheet in sheets(self.summaries.values()))


def evaluate(
    vlm: VLM,
    names: Sequence[str],
    plan: Plan | None = None,
    *,
    options: Options | None = None,
    listener: Listener | None = None,
) -> Report:
    """Run benchmarks with the full model and with every method at every budget.

    Args:
        vlm: The model.
        names: Ours (`foveate.eval.lmms.benchmarks.BENCHMARKS`) or lmms-eval's.
        plan: What is compared; by default three methods and four baselines at three budgets.
        options: How benchmarks are run.
        listener: Hears how it goes.

    Returns:
        All figures, task by task; in a notebook they are shown as tables.

    Raises:
        UnknownNameError: If there is no such benchmark.
        UnsupportedError: If lmms-eval is not installed, or a task cannot be run with this model.
        InputError: If a task's data cannot be read, answers cannot be kept, or another run uses its file.
    """
    plan, options, listener = plan or Plan(), options or Options(), listener or Listener()
    resolved = check_names(names, options.include)
    listener.note(f"benchmarks: {', '.join(_named(name, task) for name, task in resolved.items())}")
    cells = cells_of(plan.contenders(), plan.budgets(), plan.seeds)
    conditions = options.conduct.conditions(vlm)
    with plan.store(conditions, listener.note) as store:
        if len(store):
            listener.note(f"{len(store)} answers are known already, from {store.path}")
        runs = _Runs(vlm, names, options, store, listener, total=1 + sum(len(cell.draws) for cell in cells))
        full = runs(None)
        cells, scores = run_cells(cells, runs)
    summaries = {}
    for task, of_full in full.tasks.items():
        figure = of_full.primary
        asked = f"{len(of_full.documents)} documents about {len(set(of_full.media))} pictures or videos"
        summaries[task] = summarise_task(
            task,
            full,
            cells,
            scores,
            title=f"{vlm.name} on {task}: {figure}, {asked}, protocol {full.protocol}",
            figure="Score",
            origin={"metric": figure, "version": of_full.version},
        )
    origin = {
        "what": WHAT,
        "model": vlm.to_dict() | {"weights": conditions["weights"]},
        "versions": versions() | {"lmms_eval": full.harness},
        "commit": commit(),
        "protocol": full.protocol,
        "limit": options.limit,
        "names": dict(full.resolved),
    }
    return Report(summaries, origin, full, scores)


def _named(name: str, task: str) -> str:
    """A benchmark's name, and the harness's where that is another."""
    if name == task:
        return name
    return f"{name} = {task}"


@dataclass
class _Runs:
    """Runs benchmarks under one setting after the other, and tells which of how many it is.

    Attributes:
        vlm, names, options, store, listener: As of `evaluate`.
        total: How many runs there will be.
        number: How many there were.
        documents: Of one run; None before the first.
    """

    vlm: VLM
    names: Sequence[str]
    options: Options
    store: Answers
    listener: Listener
    total: int
    number: int = 0
    documents: int | None = None

    def __call__(self, setting: Setting | None) -> Scores:
        """The scores of a setting; None is the full model."""
        self.number += 1
        what, choice = "the full model", Choice()
        if setting is not None:
            what, choice = setting.name, setting.choice(self.vlm.model.config)
        with self.listener.stage(f"Run {self.number} of {self.total}: {what}", self.documents) as advance:
            scores = run(self.vlm, self.names, choice, options=self.options, store=self.store, advance=advance)
        self.documents = sum(len(task.documents) for task in scores.tasks.values())
        return scores
