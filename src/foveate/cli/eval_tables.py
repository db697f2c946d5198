"""Tables of `foveate eval` for people."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from foveate.eval.cells import Cell
from foveate.eval.stats import Estimate
from foveate.eval.summary import RIVALS, Outcome, Summary

__all__ = ["footnotes", "table", "task_table"]

SHORT = {"existence": "exists", "quadrant": "where", "read text": "text", "character": "char"}
NEAR = 0.02  # how far what is spent may lie from what was asked for, as a share of it
SHORT |= {"text quadrant": "text at", "list left to right": "list →", "list top to bottom": "list ↓"}


def table(summary: Summary, title: str, figure: str = "Accuracy") -> Table:
    """A row for the full model and one a cell."""
    names = ("", "Tokens", "FLOPs", figure, "Of full", "Agrees", "KL", "Hard", "− random", "− resize")
    shown = Table(*(Column(name, no_wrap=True) for name in names), title=Text(title), box=SIMPLE_HEAD)
    shown.add_row(
        "full model", f"{summary.vision_tokens:.1f}", "100%", _points(summary.accuracy, summary.unit), "100%", "100%"
    )
    for budget in _budgets(summary):
        shown.add_section()
        for outcome in (o for o in summary.outcomes if o.cell.budget == budget):
            shown.add_row(*_row(outcome, summary.unit))
        for cell in (c for c in summary.infeasible if c.budget == budget):
            shown.add_row(Text(cell.name), *_infeasible(cell, summary.vision_tokens))
    return shown


def task_table(summary: Summary) -> Table:
    """Accuracy of every task."""
    names = ("", *(SHORT.get(task, task) for task in summary.tasks))
    shown = Table(*(Column(name, no_wrap=True) for name in names), title="Accuracy by task, %", box=SIMPLE_HEAD)
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
        "Hard: accuracy on the questions that resize, at the same true count, gets wrong.",
        "Tokens: what a decoder layer truly processed, on average. Intervals: 95 %, paired bootstrap over pictures. "
        "− random, − resize: accuracy minus theirs at the same true count, in points.",
    ]
    for outcome in summary.outcomes:
        beaten = [rival for rival, found in outcome.against.items() if found.high < 0]
        if beaten and outcome.cell.name not in RIVALS:
            lines.append(f"{outcome.cell.name} at {outcome.tokens:.0f} tokens is worse than {' and '.join(beaten)}.")
        if (said := _unmet(outcome)) is not None:
            lines.append(f"{outcome.cell.name} at {outcome.tokens:.0f} tokens: the budget is not met, {said}.")
        if outcome.cell.note:
            lines.append(f"{outcome.cell.name} at {outcome.tokens:.0f} tokens: {outcome.cell.note}.")
    return lines


def _unmet(outcome: Outcome) -> str | None:
    """What became of a budget that was not met."""
    asked = outcome.cell.budget
    if asked is None:
        return None
    if asked > 1:  # benchmarks are asked in tokens too
        met, words = abs(outcome.tokens - asked) <= NEAR * asked, (f"{asked:g} tokens", f"{outcome.tokens:.1f}")
    else:
        met, words = abs(outcome.retention - asked) <= NEAR * asked, (f"{asked:.1%}", f"{outcome.retention:.1%}")
    return None if met else f"{words[0]} was asked for, {words[1]} is spent"


def _budgets(summary: Summary) -> list[float | None]:
    cells = [*(o.cell for o in summary.outcomes), *summary.infeasible]
    return sorted({cell.budget for cell in cells}, key=lambda budget: -(budget or 2.0))


def _row(outcome: Outcome, unit: float) -> list[str | Text]:
    return [
        Text(outcome.cell.name),
        f"{outcome.tokens:.1f}",
        "" if outcome.flops is None else f"{outcome.flops:.0%}",
        _points(outcome.accuracy, unit),
        "" if outcome.share is None else f"{outcome.share.value:.0%}",
        f"{outcome.agreement.value:.0%}",
        "" if outcome.kl is None else f"{outcome.kl.value:.2f}",
        "" if outcome.hard is None else f"{outcome.hard.value:.0%}",
        *(_points(outcome.against[rival], unit, signed=True) if rival in outcome.against else "" for rival in RIVALS),
    ]


def _points(found: Estimate, unit: float, signed: bool = False) -> str:
    """A figure with half its interval's width: `61.4 ± 2.1`."""
    return f"{unit * found.value:{'+' if signed else ''}.1f} ± {unit / 2 * (found.high - found.low):.1f}"


def _infeasible(cell: Cell[Any], vision_tokens: float) -> tuple[str, str, str]:
    floor = "" if cell.floor is None else f"≥ {cell.floor * vision_tokens:.1f}"
    return floor, "", "infeasible"
