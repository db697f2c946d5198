"""Test if `coordinates` helps questions about positions. Writes record.json and the page's table.

    python benchmarks/coordinates/run.py            # about ten minutes on one core
    python benchmarks/coordinates/run.py --page     # write only the table of docs/methods/coordinates.md

The embedded model is asked where things are (quadrant, relation, text quadrant), with FastV and Random, each alone and
with `coordinates`, at equal mean tokens. The control `first` is Random that keeps as many of the picture's first rows.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from torch import Tensor

import foveate as fv
from foveate.contract import LayerView
from foveate.core.rank import top
from foveate.eval.evaluation import Plan, evaluate
from foveate.plain.table import between

HERE = Path(__file__).resolve().parent
RECORD, PAGE = HERE / "record.json", HERE.parents[1] / "docs/methods/coordinates.md"
TASKS = ("quadrant", "relation", "text quadrant")
NAMES = ("fastv", "random")
TOKENS = (192, 64)
PART = 0.4


class First(fv.Random):
    """Random that spends `PART` of its rows on the picture's first rows."""

    name = "first"

    def pick(self, view: LayerView, count: int) -> Tensor:
        more = max(0, min(round(PART * count), count - 1))
        own = super().pick(view, count - more)
        return top((-view.tokens).scatter(0, own, 1), count)


def asked(questions: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    """The record: one row per method and budget, over all questions and by task."""
    if First.name not in fv.methods():
        fv.register_method(First)
    methods = (*(name for each in NAMES for name in (each, f"{each}+coordinates")), First.name)
    plan = Plan(methods=methods, tokens=TOKENS, draws=1, baselines=False, max_new_tokens=24)
    return evaluate(fv.load(), TASKS, plan, count=questions, seeds=seeds).to_dict()


def table(record: dict[str, Any]) -> str:
    """The page's table: accuracy over all questions and by task, and the paired change through `coordinates`."""
    cells = {(row["name"], row["budget"], row["task"]): row for row in record["rows"]}
    full = cells["full model", None, None]
    seeds = ", ".join(map(str, record["seeds"]))
    lines = [
        f"{full['questions']} questions about {full['pictures']} pictures (seeds {seeds}), % right. Changes are points "
        "relative to the method alone on the same questions, with the 95 % interval. `first` is Random that keeps as "
        "many of the picture's first rows; it is compared with Random.",
        "",
        f"| method | tokens | all | {' | '.join(TASKS)} | changes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, budget in dict.fromkeys((name, budget) for name, budget, _ in cells):
        figures = [f"{100 * cells[name, budget, task]['accuracy']:.1f}" for task in (None, *TASKS)]
        row = cells[name, budget, None]
        lines.append(f"| `{name}` | {row['tokens']:.0f} | {' | '.join(figures)} | {_change(row)} |")
    return "\n".join(lines)


def _change(row: dict[str, Any]) -> str:
    """The difference between a row and its method alone on the same questions. Empty for a method alone."""
    if row["name"].startswith("fastv+"):
        (pair,) = (pair for pair in row["paired"] if (pair["name"], pair["budget"]) == ("fastv", row["budget"]))
        values = [pair[f"accuracy{end}"] for end in ("", "_low", "_high")]
    elif row["name"] in ("random+coordinates", First.name):
        values = [row[f"minus_random{end}"] for end in ("", "_low", "_high")]
    else:
        return ""
    middle, low, high = (f"{100 * value:+.1f}" for value in values)
    return f"{middle} [{low}, {high}]"


def main() -> None:
    """Ask the questions, write the record, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=360)
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--page", action="store_true", help="fill the page from the existing record")
    options = parser.parse_args()
    if not options.page:
        record = asked(options.questions, tuple(options.seed))
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        between(page, "places", f"{table(json.loads(RECORD.read_text(encoding='utf-8')))}\n"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
