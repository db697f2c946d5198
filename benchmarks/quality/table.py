"""Write the quality tables of README.md and docs from the records in this folder.

python benchmarks/quality/table.py            # write the tables
python benchmarks/quality/table.py --check    # exit with code 1 if a table is out of date
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, dataclass, fields
from functools import partial
from math import isnan, nan
from pathlib import Path
from typing import Any

from foveate.eval.pairing import FULL_MODEL, has_collapsed, verdict
from foveate.eval.quality import Quality
from foveate.eval.quality_rows import FullRow, FullTaskRow, MethodRow, Pair, QualityRow, RefusedRow, TaskRow
from foveate.plain.stats import Estimate
from foveate.plain.table import Column, Table, between

HERE = Path(__file__).resolve().parent
CONTROLS = ("random", "uniform", "averagepool", "resize")
SMALL = (
    "One small model on synthetic pictures: the table shows whether a method works and what dropping costs there, not "
    "which method is best on your model."
)
BUDGETS = (1 / 3, 2 / 9, 1 / 9, 1 / 18)
FILM_BUDGETS, FEW_FILM_BUDGETS = (1 / 2, 1 / 4, 1 / 8), (1 / 12, 1 / 24)
SHOWN = 8
"""Up to this many cells, lost tasks are listed one by one."""
FEW = ("v2drop", "visiondrop", "divprune", "fastv", "random", "resize")
"""The rows of README.md."""
RANKED = 1 / 9
"""The budget of the ranking: 64 of 576 tokens."""

Cells = dict[tuple[str, float], MethodRow]
Floors = dict[tuple[str, float], float | None]


@dataclass(frozen=True)
class Place:
    """A place on a page, between two marks, that is filled from a record.

    Attributes:
        page: The page.
        mark: The name in its marks, `<!-- mark: begin -->` and `<!-- mark: end -->`.
        record: The file of the record.
        make: Makes the text from the record.
    """

    page: str
    mark: str
    record: str
    make: Callable[[dict[str, Any]], str]


def main(arguments: list[str]) -> int:
    """Write or check the tables and return the exit code."""
    stale = [place for place in PLACES if not write(place, check="--check" in arguments)]
    for place in stale:
        print(f"{place.page} is out of date with {place.record}: run benchmarks/quality/table.py", file=sys.stderr)
    return int(bool(stale))


def write(place: Place, *, check: bool) -> bool:
    """Write the text between a page's marks. With `check`, only compare, and return False if it differs."""
    record = json.loads((HERE / place.record).read_text(encoding="utf-8"))
    path = HERE.parents[1] / place.page
    old = path.read_text(encoding="utf-8")
    new = between(old, place.mark, place.make(record))
    if check:
        return old == new
    path.write_text(new, encoding="utf-8")
    return True


def quality_of(record: dict[str, Any]) -> Quality:
    """The figures of a record."""
    return Quality([row_of(values) for values in record["rows"]], origin=record)


def row_of(values: dict[str, Any]) -> QualityRow:
    """A row from its plain values, the inverse of `to_dict`. Figures that older records lack are NaN or None."""
    kind: type[QualityRow] = TaskRow if values["task"] else MethodRow
    if "infeasible" in values:
        kind = RefusedRow
    elif values["name"] == FULL_MODEL:
        kind = FullTaskRow if values["task"] else FullRow
    return read(kind, values)


def read(kind: type[QualityRow], values: dict[str, Any]) -> QualityRow:
    """A row of this kind from its plain values."""
    return kind(**{column.name: value_of(column, values) for column in fields(kind)})


def value_of(column: Field[Any], values: dict[str, Any]) -> Any:
    """The value of a row's field."""
    if column.name == "paired":
        return [read(Pair, pair) for pair in values.get("paired", ())]
    names = [f"{column.name}{end}" for end in ("", "_low", "_high")]
    numbers = [nan if values.get(name) is None else values[name] for name in names]
    if column.type is Estimate:
        return Estimate(*numbers)
    return numbers[0] if column.type is float else values.get(column.name)


def table(record: dict[str, Any], shown: str = "pictures", budgets: Sequence[float] = BUDGETS) -> str:
    """The table and the sentences around it, as Markdown.

    Args:
        record: A record of `run.py`.
        shown: "pictures" or "films".
        budgets: Shares of the vision tokens, one per column.
    """
    quality = quality_of(record)
    listed = dict.fromkeys(row.name for row in (*quality.settings, *quality.infeasible))
    ran = [name for name in listed if name not in CONTROLS]
    in_columns = {row.name for row in quality.settings if nearest(row, quality, budgets) in budgets}
    rows = [name for name in (*ran, *CONTROLS) if name in in_columns]
    count = quality.full.tokens
    lines = [
        f"{caption(record, shown)} In brackets: the tokens spent, if they differ from the budget. †: see below.",
        "",
        by_budget("method", {name: name for name in rows}, quality, lambda budget: f"{count * budget:.0f}", budgets),
        *sentences(quality, rows),
        "",
    ]
    return "\n".join(lines)


def caption(record: dict[str, Any], shown: str = "pictures") -> str:
    """The table's caption: the questions, the meaning of the figures, and the full model's accuracy."""
    full = quality_of(record).full
    return (
        f"Accuracy on {full.questions:,} questions about {full.pictures} generated {shown} {drawn(record)}, "
        f"% ± half the 95 % interval, by mean vision tokens per decoder layer (of {full.tokens:.0f}). "
        f"The full model: {points(full.accuracy)}."
    )


def few(record: dict[str, Any]) -> str:
    """The short table of README.md, with six rows."""
    quality = quality_of(record)
    shown = by_budget("", {name: f"`{name}`" for name in FEW}, quality, lambda b: f"{quality.full.tokens * b:.0f}")
    return "\n".join([caption(record), SMALL, "", shown.replace("†", "")])


def by_budget(
    head: str,
    names: dict[str, str],
    quality: Quality,
    column: Callable[[float], str],
    budgets: Sequence[float] = BUDGETS,
) -> str:
    """A Markdown table with a line per method and a column per budget.

    Args:
        head: Heading of the methods' column.
        names: The text shown for each method.
        quality: The figures.
        column: Returns the heading of a budget's column.
        budgets: The budgets, one per column.
    """
    cells, floors = placed(quality, budgets)
    lines = [
        [shown, *(entry(cells, floors, name, budget, quality) for budget in budgets)] for name, shown in names.items()
    ]
    return Table("", [head, *(Column(column(budget), right=True) for budget in budgets)], lines).to_markdown(
        escape=False
    )


def placed(quality: Quality, budgets: Sequence[float] = BUDGETS) -> tuple[Cells, Floors]:
    """The cells by method and budget, and the floors of the methods that cannot meet a budget."""
    cells = {(row.name, nearest(row, quality, budgets)): row for row in quality.settings}
    floors = {(row.name, near(row.budget, quality, budgets)): row.floor for row in quality.infeasible}
    return cells, floors


def near(budget: float, quality: Quality, budgets: Sequence[float]) -> float:
    """The share of the vision tokens that equals a row's budget up to rounding; the budget is a share or tokens."""
    share = budget / quality.full.tokens if budget > 1 else budget
    return next((known for known in budgets if abs(known - share) < 1e-4), share)


def nearest(row: MethodRow, quality: Quality, budgets: Sequence[float] = BUDGETS) -> float:
    """The budget whose column a cell belongs to. For a chain with its own settings, the one nearest to its tokens."""
    if row.budget is not None:
        return near(row.budget, quality, budgets)
    share = row.tokens / quality.full.tokens
    return min(budgets, key=lambda budget: abs(budget - share))


def ranking(record: dict[str, Any]) -> str:
    """The best rows at 64 tokens, and those that are not ahead of random dropping at as many."""
    quality = quality_of(record)
    rows = [row for row in quality.settings if nearest(row, quality) == RANKED]
    rows.sort(key=lambda row: -row.accuracy.value)
    best = [row for row in rows if row.accuracy.high >= rows[0].accuracy.low]
    level = [row for row in rows if row.name != "random" and row.minus_random.low <= 0]
    (random,) = (row for row in rows if row.name == "random")
    lines = [
        f"- **Best**, with intervals that overlap: {listed(best)}.",
        f"- **Not ahead of random dropping** ({points(random.accuracy)}): {listed(level)}.",
    ]
    return "\n".join([*lines, ""])


def listed(rows: Sequence[MethodRow]) -> str:
    """Names with their accuracy, separated by commas."""
    return ", ".join(f"`{row.name}` {points(row.accuracy)}" for row in rows)


def drawn(record: dict[str, Any]) -> str:
    """The seeds of the pictures, and what the intervals cover."""
    seeds = record["seeds"]
    if len(seeds) == 1:
        return f"(one seed, {seeds[0]}; intervals over its pictures)"
    return f"({len(seeds)} seeds: {', '.join(map(str, seeds))}; intervals over pictures and seeds)"


def entry(cells: Cells, floors: Floors, name: str, budget: float, quality: Quality) -> str:
    """One cell of the table."""
    count = quality.full.tokens
    if (name, budget) in floors:
        return f"floor {floors[name, budget] * count:.0f}"
    if (row := cells.get((name, budget))) is None:
        return ""
    met = abs(row.tokens - budget * count) <= 0.05 * budget * count
    mark = "†" if lost(row, quality) else ""
    return points(row.accuracy) + mark + ("" if met else f" ({row.tokens:.0f})")


def lost(row: MethodRow, quality: Quality) -> list[str]:
    """Tasks of which less than a quarter of the full model's accuracy is left."""
    full = quality.tasks_of(quality.full)
    return [task for task, of_task in quality.tasks_of(row).items() if has_collapsed(of_task, full[task])]


def hidden(cells: list[MethodRow], quality: Quality) -> list[str]:
    """The sentence on tasks whose loss the overall accuracy hides. Empty if there are none."""
    of_cells, tasks = [], []
    for row in cells:
        if here := lost(row, quality):
            of_cells.append(f"{row.name} at {row.tokens:.0f}: {shares(row, here, quality)}")
            tasks += here
    if not of_cells:
        return []
    if len(of_cells) > SHOWN:
        return [
            "",
            "† On one or more of these tasks, less than a quarter of the full model's accuracy is left: "
            f"{', '.join(dict.fromkeys(tasks))}.",
        ]
    full = shares(quality.full, dict.fromkeys(tasks), quality)
    left = "less than a quarter of the full model's accuracy is left"
    return ["", f"† Tasks on which {left} (full model: {full}): {'; '.join(of_cells)}."]


def shares(row: TaskRow, tasks: Iterable[str], quality: Quality) -> str:
    """The accuracy of each task: `read text 4 %, character 9 %`."""
    of_tasks = quality.tasks_of(row)
    return ", ".join(f"{task} {100 * of_tasks[task].accuracy.value:.0f} %" for task in tasks)


def points(figure: Estimate) -> str:
    """A figure in points, with half its interval: `61.4 ± 2.1`."""
    return f"{100 * figure.value:z.1f} ± {50 * (figure.high - figure.low):.1f}"


def sentences(quality: Quality, rows: Sequence[str]) -> list[str]:
    """The sentences below a table: its limits, and the methods that a control beats or equals."""
    lines = [SMALL]
    own = [row for row in quality.settings if row.name in rows and row.name not in CONTROLS]
    worse, alike = [], []
    for row in own:
        known = {rival: figure for rival, figure in row.minus.items() if not isnan(figure.value)}
        verdicts = {rival: verdict(figure, row.pictures) for rival, figure in known.items()}
        for words, said in (("worse than", worse), ("not told apart from", alike)):
            if rivals := [rival for rival, words_of in verdicts.items() if words_of == words]:
                said.append(f"{row.name} at {row.tokens:.0f} ({' and '.join(rivals)})")
    lines += hidden(own, quality)
    lines += ["", f"Significantly worse than a control at equal cost: {', '.join(worse) or 'none'}."]
    lines += ["", f"Not significantly different from a control at equal cost: {', '.join(alike) or 'none'}."]
    return lines


PLACES = (
    Place("README.md", "quality", "embedded.json", few),
    Place("docs/results.md", "quality", "embedded.json", table),
    Place("docs/guides/choosing.md", "ranking", "embedded.json", ranking),
    Place("docs/guides/video.md", "films", "films.json", partial(table, shown="videos", budgets=FILM_BUDGETS)),
    Place(
        "docs/guides/video.md", "films-few", "films-few.json", partial(table, shown="videos", budgets=FEW_FILM_BUDGETS)
    ),
)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
