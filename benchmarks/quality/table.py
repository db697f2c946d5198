"""Write the quality tables of README.md and docs/guides/choosing.md from benchmarks/quality/embedded.json.

python benchmarks/quality/table.py            # write it
python benchmarks/quality/table.py --check    # fail if it is not what the figures give
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foveate.eval.verdict import collapsed

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- quality: begin -->\n", "<!-- quality: end -->\n"
CHOICES = ("v2drop", "v2drop:metric=cosine", "visiondrop", "mustdrop", "random")
PAGES: dict[str, Sequence[str]] = {"README.md": (), "docs/guides/choosing.md": CHOICES}
"""Where the table stands, and which rows of it; () for all."""
CONTROLS = ("random", "uniform", "averagepool", "resize")


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    record = json.loads((HERE / "embedded.json").read_text(encoding="utf-8"))
    stale = [
        page for page, names in PAGES.items() if not write(page, table(record, names), check="--check" in arguments)
    ]
    for page in stale:
        print(f"{page} is not what embedded.json gives: run python benchmarks/quality/table.py", file=sys.stderr)
    return int(bool(stale))


def write(page: str, new: str, *, check: bool) -> bool:
    """Put the table between a page's marks, or only compare; False where it is another one."""
    path = HERE.parents[1] / page
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    if check:
        return old == new
    path.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    return True


def table(record: dict[str, Any], names: Sequence[str] = ()) -> str:
    """The table and the sentences around it, as Markdown; of these rows, or of all."""
    budgets = (1 / 3, 2 / 9, 1 / 9, 1 / 18)
    cells = {(cell["name"], round(cell["budget"], 4)): cell for cell in record["cells"]}
    floors = {(cell["name"], round(cell["budget"], 4)): cell["floor"] for cell in record["infeasible"]}
    ran = [name for name in dict.fromkeys(name for name, _ in (*cells, *floors)) if name not in CONTROLS]
    rows = names or (*ran, *CONTROLS)
    count = record["vision_tokens"]
    heads = " | ".join(f"{count * budget:.0f}" for budget in budgets)
    full = record["full"]
    lines = [
        f"Accuracy on {record['questions']:,} questions about {record['pictures']} generated pictures {drawn(record)}, "
        f"% ± half the 95 % interval, by mean vision tokens a decoder layer (of {count:.0f}). The full model: "
        f"{points(full['accuracy'])}. In brackets what was truly spent, where that is not the budget. †: less than a "
        "quarter is left of a task, see below.",
        "",
        f"| method | {heads} |",
        "|---|" + "---|" * len(budgets),
    ]
    for name in rows:
        shown = [entry(cells, floors, name, round(budget, 4), record) for budget in budgets]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *sentences(record, rows), ""])


def drawn(record: dict[str, Any]) -> str:
    """Which seeds drew the pictures, and what the intervals are over."""
    seeds = record.get("seeds") or [record["seed"]]  # records of 0.1 have one
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
