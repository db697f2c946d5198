"""Tune four methods at three budgets on the embedded model, and judge what is found on pictures of other seeds.

    python benchmarks/tuning/run.py       # an hour or two of one core; goes on where it was stopped

Each cell is what `foveate tune --search` does: the small grid, then settings that optuna suggests, chosen by pictures
that are used for nothing else. The record, search.json, has what was found and how many answers it gets right on the
seeds of `HELD_OUT`, with which nothing was tuned, chosen or looked at.
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from judging import Judge, asked, pictures_of

import foveate as fv
from foveate.eval.provenance import conditions
from foveate.registry import from_dict
from foveate.runs.versions import commit, versions
from foveate.tune.parts import grouped
from foveate.tune.trials import open_trials

OUT = Path(__file__).with_name("search.json")
METHODS = ("v2drop", "visiondrop", "fastv", "divprune:tokens={entering}+v2drop")
ENTERING = {32: 55, 64: 110, 128: 220}
"""What DivPrune leaves to V2Drop at each budget, in tokens: as in the preset chain/llava-1.5-7b/64-divprune-v2drop."""
SEED, PICTURES, MOST, SEARCH = 1301, 45, 3, 30
"""Of the pictures to tune with, how many, most questions about each, and settings beyond the small grid."""
HELD_OUT, JUDGED = (1311, 1312, 1313, 1314), 20
"""Other seeds, and pictures of each."""
ROWS = {
    "published": "published",
    "grid": "small grid",
    "tuned": "tuned",
    "random, tuned schedule": "random at tuned",
}
"""What is judged, as `foveate.Tuned` and as the record name it."""


def tuned(vlm: Any, prompts: list[Any], name: str, budget: int, work: Path) -> dict[str, Any]:
    """What one run of tuning finds."""
    begun = time.process_time()
    found = fv.tune(vlm, prompts, method=name, tokens=budget, search=SEARCH, seed=SEED, state=work / f"{name}-{budget}")
    return {
        "chosen": found.chosen,
        "tried": found.tried,
        "cpu_minutes": round((time.process_time() - begun) / 60, 1),
        "settings": {ROWS[row.name]: row.method.to_dict() for row in found.rows if row.name in ROWS},
    }


def judged(judge: Judge, settings: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of each setting on the held-out pictures, and how far one is ahead of another, paired."""
    marks = {row: judge.marks(from_dict(setting)) for row, setting in settings.items()}
    pairs = ("small grid", "published"), ("tuned", "small grid"), ("tuned", "random at tuned")
    return {
        "questions": len(judge.right),
        "full": judge.full(),
        "accuracy": {row: judge.accuracy(one) for row, one in marks.items()},
        "ahead": {f"{one} of {other}": judge.ahead(marks[one], marks[other]) for one, other in pairs if other in marks},
    }


def main() -> None:
    """Tune and judge the cells that the record has not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("tuning-work"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = fv.load()
    about = {
        "weights": conditions(vlm)["files"]["model.safetensors"],
        "seed": SEED, "pictures": PICTURES, "most": MOST, "search": SEARCH,
        "held_out": list(HELD_OUT), "judged": JUDGED * len(HELD_OUT),
    }  # fmt: skip
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    cells = record["cells"] if record.get("about") == about else []
    known = {(cell["method"], cell["budget"]) for cell in cells}
    wanted = ((text.format(entering=left), budget) for (budget, left), text in product(ENTERING.items(), METHODS))
    missing = [cell for cell in wanted if cell not in known]
    if not missing:
        return
    prompts = asked(vlm, pictures_of(SEED, PICTURES, MOST))
    chosen = [question for seed in HELD_OUT for question in pictures_of(seed, JUDGED)]
    pictures = grouped(vlm, asked(vlm, chosen))
    with open_trials(vlm, pictures, 1, state=options.work / "judged", origin=str(versions())) as trials:
        judge = Judge(vlm, chosen, pictures, trials)
        for name, budget in missing:
            found = tuned(vlm, prompts, name, budget, options.work)
            cells.append({"method": name, "budget": budget, **found, **judged(judge, found["settings"])})
            record = {"about": about, "versions": versions(), "commit": commit(), "cells": cells}
            options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"{name} at {budget}: {found['chosen']}, {found['cpu_minutes']} min", flush=True)


if __name__ == "__main__":
    main()
