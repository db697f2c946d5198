"""Measure what ThinTower costs in quality: at equal tokens, and at equal FLOPs from the pixels on.

    python benchmarks/tower/run.py            # an hour on one core; answers are cached, so it resumes
    python benchmarks/tower/run.py --page     # write only the tables of docs/methods/thintower.md

The embedded models are asked about pictures and about films. FLOPs are those of Qwen2.5-VL-3B's shape with 999 vision
tokens, where the tower takes half of them. The share of tokens at which each method costs as much as another is
computed for this shape, and the embedded models then run with these shares.
"""

import argparse
import json
from bisect import bisect_right
from pathlib import Path
from typing import Any

import foveate as fv
from foveate.bench.shapes import shape
from foveate.eval.evaluation import Plan, evaluate
from foveate.naming import parse
from foveate.plain.table import between

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs/methods/thintower.md"
MODELS = {"pictures": "embedded", "films": "embedded-films"}
SHOWN = {"pictures": "pictures", "films": "videos"}
GRID = (27, 37)
"""Rows and columns of tokens in the picture for Qwen2.5-VL-3B: 999 vision tokens."""
THIRD, NINTH = 1 / 3, 1 / 9
FULL = "full model"
MAXMIN, UNLIKE = "thintower:pick=maxmin", "thintower:pick=unlike"
ALONE = (MAXMIN, UNLIKE, f"{MAXMIN};keep=1/9", f"{UNLIKE};keep=1/9")
CHAINS = (f"{UNLIKE}+vidcom2", f"{UNLIKE}+divprune")
BEHIND = ("vidcom2", "divprune", "resize")
TARGETS = (("vidcom2", THIRD), ("vidcom2", NINTH), (CHAINS[0], THIRD))
"""Methods and shares of tokens whose FLOPs set the budgets of the others."""
ALIKE = 1.001
"""FLOPs up to this factor count as equal. The picks themselves cost less than that."""


def flops(name: str, retention: float = 1.0) -> float:
    """FLOPs of Qwen2.5-VL-3B's shape from pixels to the first token, as a share of the untouched model's."""
    config = shape("qwen2.5-vl-3b").make_config()
    sizes = {"text_tokens": 40, "vision_tokens": GRID[0] * GRID[1], "grids": [[GRID]]}
    method = parse(name)
    method = method.with_budget(retention=retention) if method.open else method
    return fv.cost(config, **sizes, method=method).total_flops / fv.cost(config, **sizes).total_flops


def equal(name: str, target: float) -> float | None:
    """The largest share of the tokens at which a method costs no more than a target. None if it always costs more."""
    count = GRID[0] * GRID[1]
    tokens = bisect_right(range(1, count + 1), ALIKE * target, key=lambda kept: flops(name, kept / count))
    return round(tokens / count, 4) if tokens else None


def cells() -> list[dict[str, Any]]:
    """The runs: at equal tokens, then a group for each target of FLOPs. A share is None if a method cannot meet it."""
    listed: list[dict[str, Any]] = [{"group": "all tokens", "name": name, "share": 1.0} for name in ALONE]
    listed += [{"group": "a third", "name": name, "share": THIRD} for name in (f"{MAXMIN}+vidcom2", *CHAINS, *BEHIND)]
    for target, retention in TARGETS:
        most = flops(target, retention)
        for name in (*CHAINS, *BEHIND):
            share = retention if name == target else equal(name, most)
            listed.append({"group": f"{1 / most:.2f}× fewer", "name": name, "share": share})
    for cell in listed:
        if cell["share"] is not None:
            cell["flops"] = flops(cell["name"], cell["share"])
            cell["setting"] = setting(cell["name"], cell["share"])
    return listed


def setting(name: str, share: float) -> str:
    """A method with its share, in the spelling of `foveate eval`."""
    if name in ALONE:
        return name
    last = name.rpartition("+")[2]
    return f"{name}{':' if ':' not in last else ';'}retention={share:.4f}"


def asked(kind: str, questions: int, seeds: tuple[int, ...], workers: int) -> dict[str, Any]:
    """The record about pictures or films."""
    listed = cells()
    settings = dict.fromkeys(cell["setting"] for cell in listed if "setting" in cell)
    plan = Plan(methods=tuple(settings), draws=1, baselines=False, max_new_tokens=24, workers=workers)
    quality = evaluate(fv.load(MODELS[kind]), (), plan, count=questions, seeds=seeds)
    return {**quality.to_dict(), "cells": listed}


def table(record: dict[str, Any], kind: str) -> str:
    """The page's table from a record."""
    rows = {row["name"]: row for row in record["rows"] if row["task"] is None}
    full, seeds = rows[FULL], ", ".join(map(str, record["seeds"]))
    lines = [
        f"{full['questions']:,} questions about {full['pictures']} {SHOWN[kind]} (seeds {seeds}); full model "
        f"{100 * full['accuracy']:.1f} %. FLOPs: how many times fewer, from pixels on, for Qwen2.5-VL-3B's shape.",
        "",
        "|  | method | share of the tokens | FLOPs | % right | minus full model |",
        "|---|---|---|---|---|---|",
    ]
    group = None
    for cell in record["cells"]:
        head, group = "" if cell["group"] == group else cell["group"], cell["group"]
        if cell["share"] is None:
            lines.append(f"| {head} | `{cell['name']}` | cannot |  |  |  |")
            continue
        row = rows[cell["setting"]]
        middle, low, high = (f"{100 * row[f'difference{end}']:+.1f}" for end in ("", "_low", "_high"))
        lines.append(
            f"| {head} | `{cell['name']}` | {row['retention']:.0%} | {1 / cell['flops']:.2f}× | "
            f"{100 * row['accuracy']:.1f} | {middle} [{low}, {high}] |"
        )
    return "\n".join(lines)


def write_page() -> None:
    """Fill the page's tables from the records."""
    page = PAGE.read_text(encoding="utf-8")
    for kind in MODELS:
        record = json.loads((HERE / f"{kind}.json").read_text(encoding="utf-8"))
        page = between(page, kind, f"{table(record, kind)}\n")
    PAGE.write_text(page, encoding="utf-8")


def main() -> None:
    """Ask the questions, write the records, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs=2, default=[1500, 500], metavar=("PICTURES", "FILMS"))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--page", action="store_true", help="fill the page from the existing records")
    options = parser.parse_args()
    if not options.page:
        for kind, questions in zip(MODELS, options.questions, strict=True):
            record = asked(kind, questions, tuple(options.seed), options.workers)
            (HERE / f"{kind}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_page()


if __name__ == "__main__":
    main()
