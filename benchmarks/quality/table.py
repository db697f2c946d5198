"""Write the quality table of README.md from benchmarks/quality/embedded.json.

python benchmarks/quality/table.py            # write it
python benchmarks/quality/table.py --check    # fail if it is not what the figures give
"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
BEGIN, END = "<!-- quality: begin -->\n", "<!-- quality: end -->\n"
TEXT = ("read text", "character")
CONTROLS = ("random", "uniform", "averagepool", "resize")


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    record = json.loads((HERE / "embedded.json").read_text(encoding="utf-8"))
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    new = table(record)
    if "--check" in arguments:
        if old != new:
            print("README.md is not what embedded.json gives: run python benchmarks/quality/table.py", file=sys.stderr)
        return int(old != new)
    README.write_text(before + BEGIN + new + END + after, encoding="utf-8")
    return 0


def table(record: dict[str, Any]) -> str:
    """The table and the sentences around it, as Markdown."""
    budgets = (1 / 3, 2 / 9, 1 / 9, 1 / 18)
    cells = {(cell["name"], round(cell["budget"], 4)): cell for cell in record["cells"]}
    floors = {(cell["name"], round(cell["budget"], 4)): cell["floor"] for cell in record["infeasible"]}
    names = [name for name in dict.fromkeys(name for name, _ in (*cells, *floors)) if name not in CONTROLS]
    count = record["vision_tokens"]
    heads = " | ".join(f"{count * budget:.0f}" for budget in budgets)
    full = record["full"]
    lines = [
        f"Accuracy on {record['questions']:,} questions about {record['pictures']} generated pictures, % ± half the "
        f"95 % interval, by mean vision tokens a decoder layer (of {count:.0f}). The full model: "
        f"{points(full['accuracy'])}. In brackets what was truly spent, where that is not the budget.",
        "",
        f"| method | {heads} |",
        "|---|" + "---|" * len(budgets),
    ]
    for name in (*names, *CONTROLS):
        shown = [entry(cells, floors, name, round(budget, 4), count) for budget in budgets]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, "", *sentences(record), ""])


def entry(cells: dict[Any, Any], floors: dict[Any, Any], name: str, budget: float, count: float) -> str:
    """One cell of the table."""
    if (name, budget) in floors:
        return f"floor {floors[name, budget] * count:.0f}"
    if (cell := cells.get((name, budget))) is None:
        return ""
    near = abs(cell["tokens"] - budget * count) <= 0.05 * budget * count
    return points(cell["accuracy"]) + ("" if near else f" ({cell['tokens']:.0f})")


def points(found: dict[str, float]) -> str:
    """`61.4 ± 2.1`, in points."""
    return f"{100 * found['value']:.1f} ± {50 * (found['high'] - found['low']):.1f}"


def sentences(record: dict[str, Any]) -> list[str]:
    """What the table shows and what it cannot, and who lost to a control."""
    lines = [
        "One small model on synthetic pictures: the table can show whether a method is implemented well and that "
        "dropping has a price; it cannot show which method is best on your model.",
    ]
    own = [cell for cell in record["cells"] if cell["name"] not in CONTROLS]
    worse = [
        named(cell, rivals) for cell in own if (rivals := [r for r, d in cell["against"].items() if d["high"] < 0])
    ]
    alike = [named(cell, rivals) for cell in own if (rivals := [r for r, d in cell["against"].items() if spans(d)])]
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
