"""Say whether a fresh record of `foveate eval` agrees with the committed one, cell by cell and task by task.

    python benchmarks/quality/agree.py FRESH [COMMITTED] [--json]

COMMITTED is benchmarks/quality/embedded.json where it is left out. Exit code 0: they agree; 1: they do not; 2: they
cannot be compared. What "agrees" means: docs/guides/quality.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from math import ceil, hypot
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, FiniteFloat, NonNegativeInt, ValidationError

from foveate._sheet import Column, Sheet
from foveate._stats import Estimate, Z
from foveate.errors import FoveateError, InputError
from foveate.eval.figures import spread_out
from foveate.eval.quality import points

COMMITTED = Path(__file__).resolve().parent / "embedded.json"
LEVEL = 0.025
"""Of each of the two families of comparisons, all cells and all tasks of cells; 5 % together."""
LEAST = 30
"""Questions of a task, in each record, below which it is not compared."""
YES, CHANCE, NO = "yes", "chance", "no"
"""The interval of the difference holds 0; it does not, but among so many some do not; more than chance explains."""


class Weights(BaseModel):
    """The model of a record."""

    weights: str


class Figure(BaseModel):
    """A row of a record, as far as it is read here; of a cell below its floor there are no figures."""

    name: str
    budget: FiniteFloat | None
    task: str | None
    questions: NonNegativeInt = 0
    accuracy: FiniteFloat | None = None
    accuracy_low: FiniteFloat = 0.0
    accuracy_high: FiniteFloat = 0.0

    @property
    def cell(self) -> str:
        """`v2drop at 33.3%`."""
        return self.name if self.budget is None else f"{self.name} at {self.budget:.1%}"

    def estimate(self) -> Estimate:
        """The accuracy with its interval."""
        assert self.accuracy is not None
        return Estimate(self.accuracy, self.accuracy_low, self.accuracy_high)


class Record(BaseModel):
    """What `foveate eval --out` writes of drawn pictures, as far as it is read here."""

    model: Weights
    seeds: list[NonNegativeInt]
    rows: list[Figure]

    def figures(self) -> dict[tuple[str, str | None], Figure]:
        """The accuracies by cell and task."""
        return {(row.cell, row.task): row for row in self.rows if row.accuracy is not None}


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


def agreement(ours: Record, theirs: Record) -> dict[str, Any]:
    """Compare two records of the same weights, made with other seeds.

    Returns:
        Whether they "agree", the "seeds" of both, the cells that only one has ("alone"), and "rows": "cell", "task"
        (None is all questions), "ours", "theirs" and "difference" (theirs minus ours) with their intervals, and
        "agrees": yes, chance or no.

    Raises:
        InputError: If the weights differ, a seed is in both, or no cell is.
    """
    if ours.model.weights != theirs.model.weights:
        raise InputError("The records are of different weights, so that their figures may differ.")
    if shared := sorted(set(ours.seeds) & set(theirs.seeds)):
        raise InputError(f"Both records have seed {shared[0]}: the same pictures. Make one with other seeds.")
    first, second = ours.figures(), theirs.figures()
    both = [key for key in first if key in second]
    cells = [key for key in both if key[1] is None]
    if len(cells) < 2:  # the full model is in both
        raise InputError("The records have no cell in common: ask for the same methods and budgets.")
    tasks = [key for key in both if key[1] and min(first[key].questions, second[key].questions) >= LEAST]
    rows = [*_compared(cells, first, second), *_compared(tasks, first, second)]
    return {
        "agrees": all(row["agrees"] != NO for row in rows),
        "seeds": [ours.seeds, theirs.seeds],
        "alone": sorted({cell for cell, task in first.keys() ^ second.keys() if task is None}),
        "rows": rows,
    }


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


def _compared(
    keys: Sequence[tuple[str, str | None]],
    first: dict[tuple[str, str | None], Figure],
    second: dict[tuple[str, str | None], Figure],
) -> list[dict[str, Any]]:
    """A family of comparisons, with a verdict each."""
    differences = [difference(first[key].estimate(), second[key].estimate()) for key in keys]
    refused = holm([_chance(each) for each in differences], LEVEL)
    rows = []
    for key, each, no in zip(keys, differences, refused, strict=True):
        verdict = YES if each.low <= 0 <= each.high else CHANCE
        rows.append(
            {
                "cell": key[0],
                "task": key[1],
                **spread_out("ours", first[key].estimate()),
                **spread_out("theirs", second[key].estimate()),
                **spread_out("difference", each),
                "agrees": NO if no else verdict,
            }
        )
    return rows


# -- what is shown --------------------------------------------------------------------------------------------


def sheets(found: dict[str, Any]) -> list[Sheet]:
    """A table of the cells and, where tasks are compared, one of them."""
    heads = [Column("cell"), *(Column(head, right=True) for head in ("first", "second", "difference", "agrees"))]
    families = [[row for row in found["rows"] if (row["task"] is None) is cells] for cells in (True, False)]
    titles = ("All questions, %", "By task, %")
    tables = [Sheet(title, heads, [_cells(row) for row in rows]) for title, rows in zip(titles, families, strict=True)]
    shown = [table for table in tables if table.rows]
    return [*shown[:-1], shown[-1].noted(notes(found))]


def _cells(row: dict[str, Any]) -> list[str]:
    name = row["cell"] if row["task"] is None else f"{row['cell']}, {row['task']}"
    figures = [points(row, "ours", 100), points(row, "theirs", 100), points(row, "difference", 100, signed=True)]
    return [name, *figures, row["agrees"]]


def notes(found: dict[str, Any]) -> list[str]:
    """What was found, in sentences."""
    lines = []
    for what, of_tasks in (("cells", False), ("tasks of cells", True)):
        family = [row for row in found["rows"] if (row["task"] is not None) is of_tasks]
        if not family:
            continue
        beyond = sum(row["agrees"] != YES for row in family)
        lines.append(
            f"{beyond} of {len(family)} {what} differ beyond the 95 % interval of their difference; chance alone gives "
            f"about {ceil(0.05 * len(family))}. More than chance: {sum(row['agrees'] == NO for row in family)}."
        )
    lines.append(
        f"chance: beyond its own 95 % interval, but not beyond that of so many comparisons (Holm, {LEVEL:.1%})."
    )
    if found["alone"]:
        lines.append(f"Only in one of the records, and not compared: {len(found['alone'])} cells.")
    lines.append("The records agree." if found["agrees"] else "The records do not agree.")
    return lines


def main(arguments: list[str]) -> int:
    """Compare and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fresh", type=Path)
    parser.add_argument("committed", type=Path, nargs="?", default=COMMITTED)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    given = parser.parse_args(arguments)
    try:
        found = agreement(read_record(given.committed), read_record(given.fresh))
    except FoveateError as error:
        print(f"agree.py: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        print(*sheets(found), sep="\n\n")
    return int(not found["agrees"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
