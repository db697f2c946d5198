"""The page on what tuning found: tables from the records, between marks of docs/tuning-found.md.

python benchmarks/tuning/table.py
"""

import json
from pathlib import Path
from typing import Any

from foveate.plain.table import between
from foveate.registry import from_dict

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "tuning-found.md"
ROWS = ("published", "small grid", "tuned", "random at tuned")
PAIRS = ("small grid of published", "tuned of small grid")


def cells(record: dict[str, Any]) -> str:
    """A line for each method and budget: accuracy by what is tuned."""
    about, first = record["about"], record["cells"][0]
    seeds = ", ".join(map(str, about["held_out"]))
    lines = [
        f"Right answers, %, on {first['questions']} questions about {about['judged']} pictures of seeds {seeds}, which "
        f"nothing was tuned, chosen or looked at with; the full model: {interval(first['full'])}. [ ] and ± are 95 % "
        "intervals over pictures and seeds; what one is ahead of another is paired. Minutes are of one core.",
        "",
        "| tokens | method | published | small grid | tuned | random at tuned | grid ahead of published "
        "| tuned ahead of grid | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in record["cells"]:
        shown = [percent(cell["accuracy"].get(row)) for row in ROWS]
        shown += [interval(cell["ahead"][pair], "+") if pair in cell["ahead"] else "–" for pair in PAIRS]
        lines.append(f"| {cell['budget']} | {cell['method']} | {' | '.join(shown)} | {cell['cpu_minutes']:.0f} |")
    return "\n".join(lines)


def settings(record: dict[str, Any]) -> str:
    """What was found, as it is typed."""
    lines = ["| tokens | from | setting |", "|---|---|---|"]
    for cell in record["cells"]:
        found = from_dict(cell["settings"]["tuned"])
        lines.append(f"| {cell['budget']} | {cell['chosen']} | `{found}` |")
    return "\n".join(lines)


def percent(share: dict[str, float] | None) -> str:
    """In hundredths, with half the interval; a dash where there is none."""
    if share is None:
        return "–"
    return f"{100 * share['value']:.1f} ± {50 * (share['high'] - share['low']):.1f}"


def interval(estimate: dict[str, float], sign: str = "") -> str:
    """95.3 [93.4, 96.9], in hundredths."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def parts() -> dict[str, str]:
    """What stands between the marks of the page, by their name."""
    found = json.loads((HERE / "search.json").read_text(encoding="utf-8"))
    return {"cells": cells(found), "settings": settings(found)}


def filled(page: str) -> str:
    """The page with its tables."""
    for name, text in parts().items():
        page = between(page, name, f"{text}\n")
    return page


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
