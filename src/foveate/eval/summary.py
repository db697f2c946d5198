"""All figures of a run on the same questions: plain values, and tables for people and notebooks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foveate._sheet import SECTION, Column, Sheet
from foveate.eval.cells import BASELINES, Cell
from foveate.eval.outcome import Outcome, points
from foveate.eval.stats import Estimate
from foveate.eval.verdict import collapsed, verdicts

__all__ = ["AGREEMENT", "Summary", "sheets"]

HARD = "Hard: accuracy on the questions that the full model gets right and resize, at the same true count, wrong."
TOKENS = "Tokens: what a decoder layer truly processed, on average."
AGAINST = "− random, − resize: accuracy minus theirs at the same true count, in points."
VERDICTS = "Better than, worse than: the 95 % interval of that difference does not hold zero."
EDGE = "(≥ …), (≤ …): all right or all wrong, so the interval is Wilson's, over pictures."
ALIKE = "± 0.0: every picture scores the same. The bootstrap takes that for certain; it is not."
AGREEMENT = "Agreement"
"""What the figure is called where no true answers are known: the share of answers that are the full model's."""
FEW = 30
"""Pictures below which an interval is worth little: a percentile bootstrap is then too narrow."""
SHORT = {
    "existence": "exists",
    "quadrant": "where",
    "read text": "text",
    "character": "char",
    "text quadrant": "text at",
    "list left to right": "list →",
    "list top to bottom": "list ↓",
}
"""Embedded tasks with names too long for a column's head."""


@dataclass(frozen=True, repr=False)
class Summary:
    """All figures of a run.

    Attributes:
        counts: Questions of each task.
        pictures: How many pictures they are about.
        vision_tokens: Mean vision tokens of a prompt.
        accuracy: The full model's.
        tasks: The full model's, task by task; empty where only one figure is known.
        outcomes: Of the cells that could be run, in the order asked.
        infeasible: Cells below a method's floor.
        unit: What figures are multiplied by for people: 100 for shares, 1 for scores.
        title: A line above the table.
        figure: What the figure is called there.
        higher_is_better: Which way is good.
        origin: What the figures depend on, as plain values: model, versions, settings.
        seeds: Those that drew the pictures; none where pictures are not drawn.
        pictures_by_seed: How many pictures each seed drew.
        counts_by_seed: Of each task, how many questions each seed gave.
        right: Of each task, how many of the full model's answers to each seed's questions are right.
    """

    counts: Mapping[str, int]
    pictures: int
    vision_tokens: float
    accuracy: Estimate
    tasks: Mapping[str, Estimate]
    outcomes: tuple[Outcome, ...]
    infeasible: tuple[Cell[Any], ...]
    unit: float = 100.0
    title: str = ""
    figure: str = "Accuracy"
    higher_is_better: bool = True
    origin: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    pictures_by_seed: tuple[int, ...] = ()
    counts_by_seed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    right: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def questions(self) -> int:
        """How many there are in all."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.origin,
            "questions": self.questions,
            "pictures": self.pictures,
            "vision_tokens": round(self.vision_tokens, 3),
            "counts": dict(self.counts),
            "by_seed": {
                "pictures": list(self.pictures_by_seed),
                "counts": {task: list(counts) for task, counts in self.counts_by_seed.items()},
            },
            "full": {
                "accuracy": self.accuracy.to_dict(),
                "tasks": {task: accuracy.to_dict() for task, accuracy in self.tasks.items()},
                "right": {task: list(right) for task, right in self.right.items()},
            },
            "cells": [outcome.to_dict() for outcome in self.outcomes],
            "infeasible": [
                {"name": cell.name, "budget": cell.budget, "floor": cell.floor, "reason": cell.infeasible}
                for cell in self.infeasible
            ],
        }

    def __repr__(self) -> str:
        full = points(self.accuracy, self.unit)
        return (
            f"Summary({self.title or self.figure!r}, {self.questions} questions about {self.pictures} pictures, full "
            f"model {full}, {len(self.outcomes)} outcomes, {len(self.infeasible)} infeasible)"
        )

    def _repr_html_(self) -> str:
        return "".join(sheet._repr_html_() for sheet in sheets([self]))

    def table(self) -> Sheet:
        """A row for the full model and one a cell; without the columns that say nothing here."""
        heads = ["", "Tokens", "FLOPs", self.figure, "Of full", "Agrees", "KL", "Hard", "− random", "− resize"]
        full = ["full model", f"{self.vision_tokens:.1f}", "100%", points(self.accuracy, self.unit), "100%", "100%"]
        rows: list[Sequence[str]] = [full]
        for budget in self._budgets():
            rows.append(SECTION)
            rows += [outcome.row(self.unit) for outcome in self._outcomes_at(budget)]
            rows += [self._infeasible_row(cell) for cell in self.infeasible if cell.budget == budget]
        unsaid = ("Of full", "Agrees") if self.figure == AGREEMENT else ()
        return _without_empty_columns(self.title, heads, rows, unsaid)

    def task_table(self) -> Sheet:
        """Accuracy of every task, %."""
        heads: list[str | Column] = ["", *(Column(SHORT.get(task, task), right=True) for task in self.tasks)]
        rows: list[Sequence[str]] = [["questions", *(str(self.counts[task]) for task in self.tasks)]]
        rows.append(["full model", *_percents(self.tasks.values())])
        for budget in self._budgets():
            rows.append(SECTION)
            for outcome in self._outcomes_at(budget):
                rows.append([f"{outcome.cell.name} {outcome.tokens:.0f}", *_percents(outcome.tasks.values())])
        return Sheet("Accuracy by task, %", heads, rows)

    def notes(self) -> list[str]:
        """What a reader must know: what was found, and how intervals came about."""
        return self.findings() + self.legend()

    def findings(self) -> list[str]:
        """Which methods beat a control and which did not, what an accuracy hides, and what is unusual about a row."""
        notes = verdicts(self.outcomes, higher_is_better=self.higher_is_better)
        notes += [line for outcome in self.outcomes for line in self._hidden(outcome)]
        for outcome in self.outcomes:
            notes += outcome.notes()
        if self.pictures < FEW:
            pictures = "1 picture" if self.pictures == 1 else f"{self.pictures} pictures"
            notes.append(f"Only {pictures}: with fewer than {FEW}, intervals and verdicts are worth little. Ask more.")
        return notes

    def _hidden(self, outcome: Outcome) -> list[str]:
        """Tasks that a method's accuracy over all questions hides, in a sentence; none of a control's."""
        if outcome.cell.name in BASELINES:
            return []
        values, full = _values(outcome.tasks), _values(self.tasks)
        lost = [f"{task} ({values[task]:.0%}; full model {full[task]:.0%})" for task in collapsed(values, full)]
        if not lost:
            return []
        return [
            f"{outcome.cell.name} at {outcome.tokens:.0f} tokens: less than a quarter is left of {', '.join(lost)}."
        ]

    def legend(self) -> list[str]:
        """What the columns mean, and how their intervals came about."""
        notes = [TOKENS, self._intervals(), *self._edges()]
        if any(outcome.against for outcome in self.outcomes):
            notes += [AGAINST, VERDICTS]
        if any(outcome.hard is not None for outcome in self.outcomes):
            notes.append(HARD)
        return notes

    def _intervals(self) -> str:
        """What the intervals are over."""
        if not self.seeds:
            return "Intervals: 95 %, paired, over pictures."
        if len(self.seeds) == 1:
            return "Intervals: 95 %, paired, over the pictures of one seed; what other seeds would add is not known."
        return f"Intervals: 95 %, paired, over pictures and over {len(self.seeds)} seeds of them."

    def _edges(self) -> list[str]:
        """What to know of figures whose bootstrap has no width."""
        figures = [self.accuracy, *(outcome.accuracy for outcome in self.outcomes)]
        notes = []
        if any("(" in points(figure, self.unit) for figure in figures):
            notes.append(EDGE)
        if any(figure.low == figure.high for figure in figures):
            notes.append(ALIKE)
        return notes

    def _budgets(self) -> list[float | None]:
        """Every budget from high to low; cells with one of their own come first."""
        cells = [*(outcome.cell for outcome in self.outcomes), *self.infeasible]
        return sorted({cell.budget for cell in cells}, key=lambda budget: -(budget or 2.0))

    def _outcomes_at(self, budget: float | None) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.cell.budget == budget]

    def _infeasible_row(self, cell: Cell[Any]) -> list[str]:
        floor = "" if cell.floor is None else f"≥ {cell.floor * self.vision_tokens:.1f}"
        return [cell.name, floor, "", "infeasible"]


def sheets(summaries: Iterable[Summary]) -> list[Sheet]:
    """The tables of several tasks, each with what was found below it; what the columns mean stands below the last."""
    tables: list[Sheet] = []
    legend: list[str] = []
    for summary in summaries:
        tables.append(_with_notes(summary.table(), summary.findings()))
        if summary.tasks:
            tables.append(summary.task_table())
        legend += summary.legend()
    last = tables.pop()
    return [*tables, _with_notes(last, [*last.notes, *dict.fromkeys(legend)])]


def _with_notes(sheet: Sheet, notes: Sequence[str]) -> Sheet:
    return Sheet(sheet.title, sheet.columns, sheet.rows, list(notes))


def _without_empty_columns(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], unsaid: Sequence[str]
) -> Sheet:
    """A sheet of the columns that have a cell with text, without those that would say a thing twice."""
    filled = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    said = [number for number, head in enumerate(heads) if head not in unsaid]
    kept = [number for number in said if any(row[number] for row in filled)]
    shown = [[row[number] for number in kept] if any(row) else SECTION for row in filled]
    columns = [Column(heads[number], right=number > 0) for number in kept]
    return Sheet(title, columns, shown)


def _values(figures: Mapping[str, Estimate]) -> dict[str, float]:
    return {task: figure.value for task, figure in figures.items()}


def _percents(figures: Iterable[Estimate]) -> list[str]:
    return [f"{100 * figure.value:.0f}" for figure in figures]
