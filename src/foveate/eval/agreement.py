"""Whether two records of the same tables agree, made with other seeds: by the intervals of their differences."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, hypot
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError

from foveate._sheet import Column, Sheet
from foveate.errors import InputError
from foveate.eval.outcome import points
from foveate.eval.spread import Z
from foveate.eval.stats import Estimate

__all__ = ["Agreement", "Compared", "Record", "agreement", "difference", "holm", "read_record"]

LEVEL = 0.025
"""Of each of the two families of comparisons, all cells and all tasks of cells; 5 % together."""
LEAST = 30
"""Questions of a task, in each record, below which it is not compared."""
YES, CHANCE, NO = "yes", "chance", "no"
"""The interval of the difference holds 0; it does not, but among so many some do not; more than chance explains."""


class _Figure(BaseModel):
    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat

    def estimate(self) -> Estimate:
        return Estimate(self.value, self.low, self.high)


class _Accuracy(BaseModel):
    accuracy: _Figure
    tasks: dict[str, _Figure]


class _Cell(_Accuracy):
    name: str
    budget: FiniteFloat | None
    tokens: FiniteFloat


class _Model(BaseModel):
    name: str
    weights: str


class Record(BaseModel):
    """What `foveate eval --out` writes, as far as it is read here."""

    model: _Model
    seeds: list[NonNegativeInt]
    counts: dict[str, NonNegativeInt]
    full: _Accuracy
    cells: list[_Cell]

    def figures(self) -> dict[str, _Accuracy]:
        """The full model's accuracies and those of every cell, by name."""
        cells: dict[str, _Accuracy] = {"full model": self.full}
        for cell in self.cells:
            share = "" if cell.budget is None else f" at {cell.budget:.1%}"
            cells[cell.name + share] = cell
        return cells


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of two records.

    Attributes:
        cell: Method and budget.
        task: None is the accuracy over all questions.
        ours: The first record's.
        theirs: The second's.
        difference: Second minus first.
        verdict: "yes", "chance" or "no".
    """

    cell: str
    task: str | None
    ours: Estimate
    theirs: Estimate
    difference: Estimate
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        figures = {"ours": self.ours, "theirs": self.theirs, "difference": self.difference}
        plain = {name: figure.to_dict() for name, figure in figures.items()}
        return {"cell": self.cell, "task": self.task, **plain, "agrees": self.verdict}


@dataclass(frozen=True)
class Agreement:
    """Every comparison of two records.

    Attributes:
        cells: Accuracies over all questions.
        tasks: Those of each task with enough questions.
        seeds: Of the first record and of the second.
        alone: Cells that only one record has.
    """

    cells: tuple[Compared, ...]
    tasks: tuple[Compared, ...]
    seeds: tuple[tuple[int, ...], tuple[int, ...]]
    alone: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no difference is more than chance explains."""
        return all(compared.verdict != NO for compared in (*self.cells, *self.tasks))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "agrees": self.agrees,
            "seeds": [list(seeds) for seeds in self.seeds],
            "alone": list(self.alone),
            "cells": [compared.to_dict() for compared in self.cells],
            "tasks": [compared.to_dict() for compared in self.tasks],
        }

    def sheets(self) -> list[Sheet]:
        """A table of the cells and, where tasks are compared, one of them."""
        cells = [_row(compared) for compared in self.cells]
        if not self.tasks:
            return [Sheet("All questions, %", _heads("cell"), cells, self.notes())]
        tasks = [_row(compared) for compared in self.tasks]
        return [
            Sheet("All questions, %", _heads("cell"), cells),
            Sheet("By task, %", _heads("cell, task"), tasks, self.notes()),
        ]

    def notes(self) -> list[str]:
        """What was found, in sentences."""
        notes = [_counted("cells", self.cells)]
        if self.tasks:
            notes.append(_counted("tasks of cells", self.tasks))
        notes.append(
            f"chance: beyond its own 95 % interval, but not beyond that of so many comparisons (Holm, {LEVEL:.1%})."
        )
        if self.alone:
            notes.append(f"Only in one of the records, and not compared: {len(self.alone)} cells.")
        notes.append("The records agree." if self.agrees else "The records do not agree.")
        return notes


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        InputError: If it cannot be read, or is no record of `foveate eval` on the embedded tasks.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON.") from error
    try:
        return Record.model_validate(values)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "its form"
        raise InputError(
            f"{path} is no record of embedded tasks by foveate eval: {place} is missing or wrong."
        ) from error


def agreement(ours: Record, theirs: Record) -> Agreement:
    """Compare two records of the same weights, made with other seeds.

    Raises:
        InputError: If the weights differ, a seed is in both, or no cell is.
    """
    if ours.model.weights != theirs.model.weights:
        raise InputError("The records are of different weights, so that their figures may differ.")
    if shared := sorted(set(ours.seeds) & set(theirs.seeds)):
        raise InputError(f"Both records have seed {shared[0]}: the same pictures. Make one with other seeds.")
    first, second = ours.figures(), theirs.figures()
    both = [cell for cell in first if cell in second]
    if both == ["full model"]:
        raise InputError("The records have no cell in common: ask for the same methods and budgets.")
    enough = {task for task in ours.counts if min(ours.counts[task], theirs.counts.get(task, 0)) >= LEAST}
    accuracies, tasks = [], []
    for cell in both:
        one, other = first[cell], second[cell]
        accuracies.append((cell, None, one.accuracy, other.accuracy))
        tasks += [(cell, task, one.tasks[task], other.tasks[task]) for task in one.tasks if task in enough]
    return Agreement(
        _compared(accuracies),
        _compared(tasks),
        (tuple(ours.seeds), tuple(theirs.seeds)),
        tuple(cell for cell in (*first, *second) if cell not in both),
    )


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Second minus first of two independent figures, with its interval from theirs.

    An end is as far as the two ends that lead there, squared and added: Newcombe, Statistics in Medicine 17, 1998,
    873-890, method 10. Intervals that are asymmetric near 0 and 1 stay so.
    """
    value = second.value - first.value
    below = hypot(second.value - second.low, first.high - first.value)
    above = hypot(second.high - second.value, first.value - first.low)
    return Estimate(value, value - below, value + above)


def holm(chances: Sequence[float], level: float) -> list[bool]:
    """Which of many hypotheses are refused, so that all are true and one is refused at most this often.

    Holds however they depend on each other (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        chances: The p-value of each.
        level: How often.
    """
    refused = [False] * len(chances)
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda place: chances[place])):
        if chances[place] > level / (len(chances) - rank):
            break
        refused[place] = True
    return refused


def _chance(difference: Estimate) -> float:
    """The p-value of no difference, from how many half intervals 0 is away."""
    towards_zero = difference.value - difference.low if difference.value > 0 else difference.high - difference.value
    if difference.value == 0:
        return 1.0
    if towards_zero == 0:
        return 0.0
    return 2 * NormalDist().cdf(-Z * abs(difference.value) / towards_zero)


def _compared(pairs: Iterable[tuple[str, str | None, _Figure, _Figure]]) -> tuple[Compared, ...]:
    """A family of comparisons, with a verdict each."""
    listed = list(pairs)
    differences = [difference(one.estimate(), other.estimate()) for _, _, one, other in listed]
    refused = holm([_chance(each) for each in differences], LEVEL)
    found = []
    for (cell, task, one, other), each, no in zip(listed, differences, refused, strict=True):
        verdict = YES if each.low <= 0 <= each.high else CHANCE
        found.append(Compared(cell, task, one.estimate(), other.estimate(), each, NO if no else verdict))
    return tuple(found)


def _counted(what: str, family: Sequence[Compared]) -> str:
    """`2 of 46 cells are beyond their 95 % interval; about 2 are expected by chance; 0 are more than chance.`"""
    beyond = sum(compared.verdict != YES for compared in family)
    refused = sum(compared.verdict == NO for compared in family)
    expected = ceil(0.05 * len(family))
    return (
        f"{beyond} of {len(family)} {what} differ beyond the 95 % interval of their difference; chance alone gives "
        f"about {expected}. More than chance: {refused}."
    )


def _heads(first: str) -> list[Column]:
    return [Column(first), *(Column(head, right=True) for head in ("first", "second", "difference", "agrees"))]


def _row(compared: Compared) -> list[str]:
    name = compared.cell if compared.task is None else f"{compared.cell}, {compared.task}"
    shown = [points(compared.ours, 100), points(compared.theirs, 100), points(compared.difference, 100, signed=True)]
    return [name, *shown, compared.verdict]
