"""Write the quality tables of README.md, benchmarks/quality/README.md and docs/guides from the records in this folder.

python benchmarks/quality/table.py            # write it
python benchmarks/quality/table.py --check    # fail if it is not what the figures give
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.eval.verdict import collapsed

HERE = Path(__file__).resolve().parent
CONTROLS = ("random", "uniform", "averagepool", "resize")
BUDGETS = (1 / 3, 2 / 9, 1 / 9, 1 / 18)
SHOWN = 8
"""Most cells whose lost tasks are listed one by one."""
RANKED = 1 / 9
"""The budget by which the ranking is sorted: 64 of 576 tokens."""


@dataclass(frozen=True)
class Place:
    """A page's two marks, and what stands between them.

    Attributes:
        page: The page.
        mark: The name in its marks, `<!-- mark: begin -->` and `<!-- mark: end -->`.
        record: The file that the text is made from.
        make: What makes it.
    """

    page: str
    mark: str
    record: str
    make: Callable[[dict[str, Any]], str]


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    stale = [place for place in PLACES if not write(place, check="--check" in arguments)]
    for place in stale:
        print(f"{place.page} is not what {place.record} gives: run python benchmarks/quality/table.py", file=sys.stderr)
    return int(bool(stale))


def write(place: Place, *, check: bool) -> bool:
    """Put the text between a page's marks, or only compare; False where it is another one."""
    record = json.loads((HERE / place.record).read_text(encoding="utf-8"))
    new = place.make(record)
    begin, end = f"<!-- {place.mark}: begin -->\n", f"<!-- {place.mark}: end -->\n"
    path = HERE.parents[1] / place.page
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    old, _, after = rest.partition(end)
    if check:
        return old == new
    path.write_text(before + begin + new + end + after, encoding="utf-8")
    return True


def table(record: dict[str, Any], names: Sequence[str] = ()) -> str:
    """The table and the sentences around it, as Markdown; of these rows, or of all."""
    cells = {(cell["name"], round(nearest(cell, record), 4)): cell for cell in record["cells"]}
    floors = {(cell["name"], round(cell["budget"], 4)): cell["floor"] for cell in record["infeasible"]}
    ran = [name for name in dict.fromkeys(name for name, _ in (*cells, *floors)) if name not in CONTROLS]
    rows = names or (*ran, *CONTROLS)
    rows = [name for name in rows if any((name, round(budget, 4)) in cells for budget in BUDGETS)]
    count = record["vision_tokens"]
    heads = " | ".join(f"{count * budget:.0f}" for budget in BUDGETS)
    full = record["full"]
    lines = [
        f"Accuracy on {record['questions']:,} questions about {record['pictures']} generated pictures {drawn(record)}, "
        f"% ± half the 95 % interval, by mean vision tokens a decoder layer (of {count:.0f}). The full model: "
        f"{points(full['accuracy'])}. In brackets what was truly spent, where that is not the budget. †: less than a "
        "quarter is left of a task, see below.",
        "",
        f"| method | {heads} |",
        "|---|" + "---|" * len(BUDGETS),
    ]
    for name in rows:
        shown = [entry(cells, floors, name, round(budget, 4), record) for budget in BUDGETS]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *sentences(record, rows), ""])


def nearest(cell: dict[str, Any], record: dict[str, Any]) -> float:
    """The budget in whose column a cell stands; that of a chain with a setting of its own by what it spends."""
    if cell["budget"] is not None:
        return cell["budget"]
    share = cell["tokens"] / record["vision_tokens"]
    return min(BUDGETS, key=lambda budget: abs(budget - share))


def ranking(record: dict[str, Any]) -> str:
    """All rows, the best at 64 tokens first, with what they are ahead of random dropping at as many tokens."""
    cells = [cell for cell in record["cells"] if round(nearest(cell, record), 4) == round(RANKED, 4)]
    cells.sort(key=lambda cell: -cell["accuracy"]["value"])
    lines = ["| | method | tokens truly spent | accuracy | ahead of random |", "|---|---|---|---|---|"]
    for place, cell in enumerate(cells, 1):
        ahead = cell["against"].get("random")
        shown = "" if ahead is None else f"{points(ahead)}"
        name, tokens = f"`{cell['name']}`", f"{cell['tokens']:.0f}"
        lines.append(f"| {place} | {name} | {tokens} | {points(cell['accuracy'])} | {shown} |")
    best = cells[0]["accuracy"]["low"]
    alike = [f"`{cell['name']}`" for cell in cells[1:] if cell["accuracy"]["high"] >= best]
    said = f"Intervals that overlap with the first one's: {', '.join(alike) or 'none'}."
    return "\n".join([*lines, "", said, ""])


def resized(record: dict[str, Any]) -> str:
    """A smaller picture beside dropping at random before the decoder, and three methods."""
    cells = {(cell["name"], round(nearest(cell, record), 4)): cell for cell in record["cells"]}
    floors = {(cell["name"], round(cell["budget"], 4)): cell["floor"] for cell in record["infeasible"]}
    lines = ["| | " + " | ".join(f"{record['vision_tokens'] * budget:.0f} tokens" for budget in BUDGETS) + " |"]
    lines.append("|---|" + "---|" * len(BUDGETS))
    for name in ("resize", "random:layers=0", "v2drop", "divprune", "scope"):
        shown = [entry(cells, floors, name, round(budget, 4), record).replace("†", "") for budget in BUDGETS]
        lines.append(f"| `{name}` | " + " | ".join(shown) + " |")
    return "\n".join([*lines, ""])


def drawn(record: dict[str, Any]) -> str:
    """Which seeds drew the pictures, and what the intervals are over."""
    seeds = record["seeds"]
    if len(seeds) == 1:
        return f"(one seed, {seeds[0]}; intervals over its pictures)"
    return f"({len(seeds)} seeds: {', '.join(map(str, seeds))}; intervals over pictures and seeds)"


def entry(cells: dict[Any, Any], floors: dict[Any, Any], name: str, budget: float, record: dict[str, Any]) -> str:
    """One cell of the table."""
    count = record["vision_tokens"]
    if (name, budget) in floors:
        return f"floor {floors[name, budget] * count:.0f}"
    if (cell := cells.get((name, budget))) is None:
        return ""
    near = abs(cell["tokens"] - budget * count) <= 0.05 * budget * count
    mark = "†" if lost(cell, record) else ""
    return points(cell["accuracy"]) + mark + ("" if near else f" ({cell['tokens']:.0f})")


def lost(cell: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """Tasks of which less than a quarter of the full model's accuracy is left."""
    return collapsed(values(cell), values(record["full"]))


def values(figures: dict[str, Any]) -> dict[str, float]:
    """The accuracy of every task."""
    return {task: figure["value"] for task, figure in figures["tasks"].items()}


def hidden(cells: list[dict[str, Any]], record: dict[str, Any]) -> list[str]:
    """The sentence on what accuracies over all tasks hide; nothing where they hide nothing."""
    of_cells, tasks = [], []
    for cell in cells:
        if here := lost(cell, record):
            of_cells.append(f"{cell['name']} at {cell['tokens']:.0f}: {shares(cell, here)}")
            tasks += here
    if not of_cells:
        return []
    if len(of_cells) > SHOWN:
        return ["", f"† Hides a task of which less than a quarter is left, out of {', '.join(dict.fromkeys(tasks))}."]
    full = shares(record["full"], dict.fromkeys(tasks))
    return ["", f"† Hides a task of which less than a quarter is left (full model: {full}): {'; '.join(of_cells)}."]


def shares(figures: dict[str, Any], tasks: Iterable[str]) -> str:
    """`read text 4 %, character 9 %`."""
    return ", ".join(f"{task} {100 * values(figures)[task]:.0f} %" for task in tasks)


def points(found: dict[str, float]) -> str:
    """`61.4 ± 2.1`, in points."""
    return f"{100 * found['value']:.1f} ± {50 * (found['high'] - found['low']):.1f}"


def sentences(record: dict[str, Any], rows: Sequence[str]) -> list[str]:
    """What the table shows and what it cannot, and who lost to a control."""
    lines = [
        "One small model on synthetic pictures: the table can show whether a method is implemented well and that "
        "dropping has a price; it cannot show which method is best on your model.",
    ]
    own = [cell for cell in record["cells"] if cell["name"] in rows and cell["name"] not in CONTROLS]
    worse = [
        named(cell, rivals) for cell in own if (rivals := [r for r, d in cell["against"].items() if d["high"] < 0])
    ]
    alike = [named(cell, rivals) for cell in own if (rivals := [r for r, d in cell["against"].items() if spans(d)])]
    lines += hidden(own, record)
    lines += ["", f"Worse than a control that costs as much: {', '.join(worse) or 'none'}."]
    lines += ["", f"Not told apart from such a control: {', '.join(alike) or 'none'}."]
    return lines


def named(cell: dict[str, Any], rivals: list[str]) -> str:
    """A cell and its rivals in a few words."""
    return f"{cell['name']} at {cell['tokens']:.0f} ({' and '.join(rivals)})"


def spans(found: dict[str, float]) -> bool:
    """Whether an interval holds zero."""
    return found["low"] <= 0 <= found["high"]


PLACES = (
    Place("README.md", "quality", "embedded.json", table),
    Place("docs/guides/choosing.md", "ranking", "embedded.json", ranking),
    Place("docs/guides/choosing.md", "resized", "embedded.json", resized),
)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
