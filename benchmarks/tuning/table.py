"""The page on what tuning found: tables from the record, between two marks of docs/tuning-found.md.

python benchmarks/tuning/table.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "tuning-found.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


def tables(record: dict[str, Any]) -> str:
    """A section for each cell of the record."""
    full = record["full"]
    search = record["search"]
    seeds = ", ".join(map(str, record["seeds"]["held-out"]))
    lines = [
        f"Full model: {interval(full)} % on {record['questions']} questions about {record['pictures']} held-out "
        f"pictures (seeds {seeds}). Tuned on {search['pictures']} pictures of seed "
        f"{record['seeds']['search']}; [ ] are 95 % intervals over pictures, differences are paired.",
        "",
    ]
    for cell in record["cells"]:
        lines += section(cell)
    return "\n".join(lines)


def section(cell: dict[str, Any]) -> list[str]:
    """One method at one budget."""
    lines = [
        f"### {cell['method']} at {cell['budget']} tokens",
        "",
        f"{cell['tried']} settings in {cell['minutes']} minutes ({cell['cpu_minutes']} minutes of one core). Chosen: "
        f"{cell['chosen']}.{'' if cell['complete'] else ' Not all rows are there yet.'}",
        "",
        "| setting | tokens | accuracy, % | ahead of published | text, other | scenes, sketches |",
        "|---|---|---|---|---|---|",
    ]
    for row in cell["rows"]:
        tokens = f"{row['tokens']:.2f}"
        if "calibrated" in row:
            tokens += f" ({row['fewest']:.0f} to {row['most']:.0f}; calibrated {row['calibrated']:.2f})"
        ahead = interval(row["ahead"], "+") if "ahead" in row else ""
        shares = [f"{100 * row[name]:.0f}" for name in ("text", "other", "scenes", "sketches")]
        cells = (row["name"], tokens, interval(row["accuracy"]), ahead, ", ".join(shares[:2]), ", ".join(shares[2:]))
        lines.append(f"| {' | '.join(cells)} |")
    by_name = {row["name"]: row for row in cell["rows"]}
    for name in ("published", "small grid", "tuned"):
        if name in by_name:
            lines += ["", f"{name}: `{short(by_name[name]['method'])}`"]
    return [*lines, ""]


def interval(estimate: dict[str, float], sign: str = "") -> str:
    """95.3 [93.4, 96.9], in hundredths."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def short(method: dict[str, Any]) -> str:
    """A setting without what is off."""
    words = []
    for name, value in method.items():
        if name == "method" or value in (None, False, "sample", 0):
            continue
        if isinstance(value, list):
            value = ", ".join(f"{part:.3g}" if isinstance(part, float) else str(part) for part in value)
        words.append(f"{name}={value}")
    return "; ".join(words)


def main() -> None:
    """Write the tables into the page."""
    record = json.loads((HERE / "embedded.json").read_text(encoding="utf-8"))
    page = PAGE.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    _, foot = rest.split(END)
    PAGE.write_text(f"{head}{BEGIN}\n{tables(record)}\n{END}{foot}", encoding="utf-8")


if __name__ == "__main__":
    main()
