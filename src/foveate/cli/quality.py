"""What `foveate eval` does around the asking: names to contenders, conditions, and tables for people."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Column as TableColumn
from rich.table import Table
from rich.text import Text

from foveate import embedded
from foveate.cli.choose import fitted, is_setting, parse_settings, setting
from foveate.cli.loading import Loaded, load
from foveate.cli.options import EMBEDDED, ModelOptions
from foveate.cli.usage import UsageError
from foveate.eval import provenance
from foveate.eval.cells import Cell, Contender
from foveate.eval.pictures import Asked
from foveate.eval.run import key_of
from foveate.eval.stats import Estimate
from foveate.eval.store import Store
from foveate.eval.summary import RIVALS, Column, Outcome, Summary, summarise
from foveate.methods.base import Method
from foveate.registry import method as method_named

__all__ = [
    "conditions",
    "contender",
    "footnotes",
    "now",
    "pair",
    "place",
    "summary",
    "table",
    "task_table",
]


SHORT = {"existence": "exists", "quadrant": "where", "read text": "text", "character": "char"}
SHORT |= {"text quadrant": "text at", "list left to right": "list →", "list top to bottom": "list ↓"}


def contender(name: str) -> Contender:
    """A method named on the command line: `v2drop`, `v2drop:metric=l1:reverse=true`, a preset, or a tuning's record.

    Raises:
        UnknownNameError: If there is none of that name.
        UsageError: If a setting is unknown or of the wrong kind.
    """
    if is_setting(name):
        return Contender(name, type(setting(name)), fixed=setting(name))
    base, *pairs = name.split(":")
    kind = method_named(base)
    values = fitted(kind, parse_settings(pairs))
    known = set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    if unknown := sorted(set(values) - known):
        raise UsageError(f"--method {name}: {base} has no setting {unknown[0]}. It has: {', '.join(sorted(known))}.")
    return Contender(name, kind, values)


def place(models: ModelOptions) -> str:
    """Where the weights are: a folder or a hub id."""
    return str(embedded.path()) if models.model == EMBEDDED else models.model


def pair(models: ModelOptions) -> tuple[Any, Any]:
    """Model and processor; called once in every process."""
    loaded = load(models)
    return loaded.model, loaded.processor


def conditions(loaded: Loaded, weights: str, max_new_tokens: int) -> dict[str, Any]:
    """All that an answer depends on but for question and method."""
    ran = {name: value for name, value in loaded.to_dict().items() if name != "name"}
    return {"weights": weights, **ran, **provenance.versions(), "max_new_tokens": max_new_tokens}


def now() -> str:
    """This moment, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat()


def summary(asked: Sequence[Asked], cells: Sequence[Cell], store: Store) -> Summary:
    """Every figure of a run whose answers the store has."""
    full = [store.get("full", one.key) for one in asked]

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


def table(summary: Summary, title: str) -> Table:
    """A row for the full model and one a cell."""
    names = ("", "Tokens", "FLOPs", "Accuracy", "Of full", "Agrees", "KL", "− random", "− resize")
    shown = Table(*(TableColumn(name, no_wrap=True) for name in names), title=Text(title), box=SIMPLE_HEAD)
    shown.add_row("full model", f"{summary.vision_tokens:.1f}", "100%", _points(summary.accuracy), "100%", "100%")
    for budget in _budgets(summary):
        shown.add_section()
        for outcome in (o for o in summary.outcomes if o.cell.budget == budget):
            shown.add_row(*_row(outcome))
        for cell in (c for c in summary.infeasible if c.budget == budget):
            shown.add_row(Text(cell.name), *_infeasible(cell, summary.vision_tokens))
    return shown


def task_table(summary: Summary) -> Table:
    """Accuracy of every task."""
    names = ("", *(SHORT.get(task, task) for task in summary.tasks))
    shown = Table(*(TableColumn(name, no_wrap=True) for name in names), title="Accuracy by task, %", box=SIMPLE_HEAD)
    shown.add_row("full model", *(f"{100 * found.value:.0f}" for found in summary.tasks.values()))
    for budget in _budgets(summary):
        shown.add_section()
        for outcome in (o for o in summary.outcomes if o.cell.budget == budget):
            name = f"{outcome.cell.name} {outcome.tokens:.0f}"
            shown.add_row(Text(name), *(f"{100 * found.value:.0f}" for found in outcome.tasks.values()))
    return shown


def footnotes(summary: Summary) -> list[str]:
    """What a reader must know: how the intervals came about, and which methods did not beat a control."""
    lines = [
        "Tokens: what a decoder layer truly processed, on average. Intervals: 95 %, paired bootstrap over pictures. "
        "− random, − resize: accuracy minus theirs at the same true count, in points."
    ]
    for outcome in summary.outcomes:
        beaten = [rival for rival, found in outcome.against.items() if found.high < 0]
        if beaten and outcome.cell.name not in RIVALS:
            lines.append(f"{outcome.cell.name} at {outcome.tokens:.0f} tokens is worse than {' and '.join(beaten)}.")
        if outcome.cell.note:
            lines.append(f"{outcome.cell.name} at {outcome.tokens:.0f} tokens: {outcome.cell.note}.")
    return lines


def _budgets(summary: Summary) -> list[float | None]:
    cells = [*(o.cell for o in summary.outcomes), *summary.infeasible]
    return sorted({cell.budget for cell in cells}, key=lambda budget: -(budget or 2.0))


def _row(outcome: Outcome) -> list[str | Text]:
    return [
        Text(outcome.cell.name),
        f"{outcome.tokens:.1f}",
        "" if outcome.flops is None else f"{outcome.flops:.0%}",
        _points(outcome.accuracy),
        "" if outcome.share is None else f"{outcome.share.value:.0%}",
        f"{outcome.agreement.value:.0%}",
        "" if outcome.kl is None else f"{outcome.kl.value:.2f}",
        *(_points(outcome.against[rival], signed=True) if rival in outcome.against else "" for rival in RIVALS),
    ]


def _points(found: Estimate, signed: bool = False) -> str:
    """A share in points with half its interval's width: `61.4 ± 2.1`."""
    return f"{100 * found.value:{'+' if signed else ''}.1f} ± {50 * (found.high - found.low):.1f}"


def _infeasible(cell: Cell, vision_tokens: float) -> tuple[str, str, str]:
    floor = "" if cell.floor is None else f"≥ {cell.floor * vision_tokens:.1f}"
    return floor, "", "infeasible"
