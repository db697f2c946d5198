"""Search settings on the embedded model with optuna, and judge them on pictures of seeds that nothing else has seen.

    python benchmarks/tuning/run.py                     # some hour of one core; goes on where it was stopped
    python benchmarks/tuning/run.py --judge             # a quarter of an hour: pairs all that the record has

The record, search.json, also has what the search found that foveate had before, at the commit that it names: on the
same pictures, with as many settings.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from judging import Judge, asked, pictures_of

import foveate as fv
from foveate._versions import versions
from foveate.contract.catalogue import from_dict
from foveate.tune.parts import grouped
from foveate.tune.trials import open_trials

OUT = Path(__file__).with_name("search.json")
# Method, budget in tokens: pictures to tune with, most questions about each, settings beyond the grid.
CELLS = {("v2drop", 32): (60, 6, 90), ("fastv", 32): (80, 3, 87), ("pyramiddrop", 192): (80, 3, 45)}
SEEDS = (1201, 1202, 1203)
HELD_OUT = (1211, 1212, 1213, 1214)
JUDGED = 25
"""Pictures of each held-out seed."""


def tuned(vlm: Any, name: str, budget: int, seed: int, work: Path) -> dict[str, Any]:
    """What one search finds."""
    pictures, most, search = CELLS[name, budget]
    prompts = asked(vlm, pictures_of(seed, pictures, most))
    begun = time.process_time()
    found = fv.tune(
        vlm, prompts, method=name, tokens=budget, search=search, seed=seed, state=work / f"{name}-{budget}-{seed}"
    )
    return {
        "by": "optuna",
        "method": name,
        "budget": budget,
        "seed": seed,
        "chosen": found.chosen,
        "tried": found.tried,
        "cpu_minutes": round((time.process_time() - begun) / 60, 1),
        "grid": next(row.method.to_dict() for row in found.rows if row.name == "grid"),
        "setting": found.method.to_dict(),
    }


def judged(vlm: Any, found: list[dict[str, Any]], name: str, budget: int, work: Path) -> dict[str, Any]:
    """Accuracy on held-out pictures, over the seeds of the searches, and how far optuna is ahead of the others."""
    _, most, _ = CELLS[name, budget]
    chosen = [question for seed in HELD_OUT for question in pictures_of(seed, JUDGED, most)]
    of_cell = [one for one in found if (one["method"], one["budget"]) == (name, budget)]
    settings = {
        by: [from_dict(one["setting"]) for one in of_cell if one["by"] == by]
        for by in dict.fromkeys(one["by"] for one in of_cell)
    }
    settings["small grid"] = [from_dict(one["grid"]) for one in of_cell if one["by"] == "optuna"]
    pictures = grouped(vlm, asked(vlm, chosen))
    with open_trials(vlm, pictures, 1, state=work / f"judged-{name}-{budget}", origin=str(versions())) as trials:
        judge = Judge(vlm, chosen, trials)
        marks = {by: judge.marks(methods) for by, methods in settings.items()}
        return {
            "method": name,
            "budget": budget,
            "pictures": len(pictures),
            "questions": len(chosen),
            "full": judge.full(),
            "accuracy": {by: judge.accuracy(one) for by, one in marks.items()},
            "ahead": {by: judge.ahead(marks["optuna"], one) for by, one in marks.items() if by != "optuna"},
        }


def main() -> None:
    """Search the cells that the record has not, or judge those that it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="judge what was found")
    parser.add_argument("--work", type=Path, default=Path("tuning-work"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = fv.load()
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"found": []}
    known = {(one["by"], one["method"], one["budget"], one["seed"]) for one in record["found"]}
    for seed in SEEDS if not options.judge else ():
        for name, budget in CELLS:
            if ("optuna", name, budget, seed) not in known:
                record["found"].append(tuned(vlm, name, budget, seed, options.work))
                write(options.out, record)
    if options.judge:
        record["held_out"] = list(HELD_OUT)
        record["judged"] = [judged(vlm, record["found"], *cell, options.work) for cell in CELLS]
        record["versions"] = versions()
        write(options.out, record)


def write(out: Path, record: dict[str, Any]) -> None:
    """Write the record."""
    out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
