"""Write the tables of MODEL_CARD.md from the records.

    python training/card.py            # write them
    python training/card.py --check    # fail if they are not what the records give

The full model's from `training/results/shipped.json` and `handmade.json`, what dropping costs from
`benchmarks/quality/embedded.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from foveate.plain.table import between

ROOT = Path(__file__).resolve().parents[1]
CARD = ROOT / "src/foveate/embedded/model/MODEL_CARD.md"
SHIPPED = ROOT / "training/results/shipped.json"
HANDMADE = ROOT / "training/results/handmade.json"
QUALITY = ROOT / "benchmarks/quality/embedded.json"
TASKS = ("read text", "character", "relation", "count", "colour")


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    old = new = CARD.read_text(encoding="utf-8")
    shipped = json.loads(SHIPPED.read_text(encoding="utf-8"))
    for name, kind in (("full", "tasks"), ("sketches", "sketches"), ("films", "films")):
        new = between(new, name, full(shipped[kind]))
    handmade = json.loads(HANDMADE.read_text(encoding="utf-8"))
    new = between(new, "handmade", full(handmade["results"], "kind of question"))
    new = between(new, "dropping", dropping(json.loads(QUALITY.read_text(encoding="utf-8"))))
    if "--check" in arguments:
        if old != new:
            print("MODEL_CARD.md is not what the records give: run python training/card.py", file=sys.stderr)
        return int(old != new)
    CARD.write_text(new, encoding="utf-8")
    return 0


def full(of_tasks: dict[str, Any], head: str = "task") -> str:
    """Exact match of every task."""
    rows = [
        f"| {task} | {row['n']} | {row['accuracy']:.3f} | {row['low']:.2f} to {row['high']:.2f} |"
        for task, row in of_tasks.items()
    ]
    return "\n".join([f"| {head} | n | exact match | 95 % interval |", "|---|---|---|---|", *rows, ""])


def dropping(record: dict[str, Any]) -> str:
    """Accuracy of every setting on a few tasks, with half the width of each interval."""
    seeds = ", ".join(map(str, record["seeds"]))
    figures = {(row["name"], row["budget"], row["task"]): row for row in record["rows"] if "accuracy" in row}
    rows = []
    for (name, budget, task), row in figures.items():
        if task is None:
            shown = [*(figures[name, budget, task] for task in TASKS), row]
            rows.append(f"| {name} | {row['tokens']:.1f} | {' | '.join(map(points, shown))} |")
    whole = record["rows"][0]
    about = f"{whole['questions']:,} questions about {whole['pictures']} pictures, seeds {seeds}."
    head = f"| method | mean tokens | {' | '.join(TASKS)} | all |"
    return "\n".join([about, "", head, "|---|" + "---|" * (len(TASKS) + 2), *rows, ""])


def points(row: dict[str, Any]) -> str:
    """`.61 ± .02`"""
    return f"{row['accuracy']:.2f} ± {(row['accuracy_high'] - row['accuracy_low']) / 2:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
