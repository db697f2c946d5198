"""Tune four methods at three budgets on the embedded model, and judge what is chosen on pictures of other seeds.

    python benchmarks/tuning/run.py       # about half an hour of one core; goes on where it was stopped

Each cell is what `foveate tune` does. The record, tuned.json, has what was chosen, and how many answers it gets right
on the seeds of `HELD_OUT`, with which nothing was tuned, chosen or looked at, as `foveate eval` counts them.
"""

import argparse
import json
import time
from itertools import groupby, product
from pathlib import Path

import torch

import foveate as fv
from foveate.embedded import TASKS
from foveate.embedded.questions import TEXT_TASKS
from foveate.eval.asked import Asked, prompts_of
from foveate.eval.contenders import Contender
from foveate.eval.evaluation import Asking
from foveate.eval.held_out import questions
from foveate.eval.pairing import FULL_MODEL
from foveate.eval.plan import Plan
from foveate.eval.provenance import conditions
from foveate.eval.records import FORM
from foveate.runs.listener import Listener
from foveate.runs.versions import commit, versions

OUT = Path(__file__).with_name("tuned.json")
METHODS = ("v2drop", "visiondrop", "fastv", "divprune:tokens={entering}+v2drop")
ENTERING = {32: 55, 64: 110, 128: 220}
"""What DivPrune leaves to V2Drop at each budget, in tokens: as in the preset chain/llava-1.5-7b/64-divprune-v2drop."""
SEED, PICTURES, MOST = 1301, 45, 3
"""Of the pictures to tune with, how many, and most questions about each."""
HELD_OUT, JUDGED = (1311, 1312, 1313, 1314), 20
"""Other seeds, and pictures of each."""
ROWS = ("published", "grid", "tuned", "random, tuned schedule")
FIGURES = ("name", "tokens", "accuracy", "accuracy_low", "accuracy_high", "paired")


def drawn(seed: int, count: int, most: int = 99) -> list[Asked]:
    """The questions about the first `count` pictures of a seed, at most so many of each."""
    by_picture = [list(about) for _, about in groupby(questions(TASKS, 12 * count, (seed,)), lambda one: one.picture)]
    chosen: list[Asked] = []
    for about in by_picture[:count]:
        chosen += sorted(about, key=lambda question: question.task not in TEXT_TASKS)[:most]
    return chosen


def main() -> None:
    """Tune and judge the cells that the record has not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("tuning-work"))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    vlm = fv.load()
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"cells": []}
    done = {(cell["method"], cell["budget"]) for cell in record["cells"]}
    prompts = prompts_of(vlm, drawn(SEED, PICTURES, MOST))
    judged = [question for seed in HELD_OUT for question in drawn(seed, JUDGED)]
    plan = Plan(cache=options.work)
    for (budget, left), text in product(ENTERING.items(), METHODS):
        name, begun = text.format(entering=left), time.process_time()
        if (name, budget) in done:
            continue
        tuned = fv.tune(vlm, prompts, method=name, tokens=budget, seed=SEED, cache=options.work)
        minutes = round((time.process_time() - begun) / 60, 1)
        settings = [Contender(row.name, None, (row.method,)) for row in tuned.rows if row.name in ROWS]
        with plan.store(conditions(vlm) | FORM | {"max_new_tokens": plan.max_new_tokens}) as store:
            rows = Asking(vlm, judged, plan, store, Listener()).rows(settings, "")
        rows = [{key: row.get(key) for key in FIGURES} for row in rows if row["task"] is None]
        chosen = {"method": name, "budget": budget, "chosen": tuned.chosen, "setting": str(tuned.method)}
        record["cells"].append({**chosen, "cpu_minutes": minutes, "rows": rows})
        record |= {"versions": versions(), "commit": commit(), "questions": len(judged)}
        options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        accuracies = ", ".join(f"{row['name']} {row['accuracy']:.1%}" for row in rows if row["name"] != FULL_MODEL)
        print(f"{name} at {budget}: {tuned.method} ({tuned.chosen}, {minutes} min): {accuracies}", flush=True)


if __name__ == "__main__":
    main()
