"""Tune methods on the embedded model, and compare each on pictures nobody saw: schedule, score and count apart.

    python benchmarks/tuning/run.py [--methods NAME …] [--budgets N …] [--work FOLDER] [--out FILE]

Cells (a method at a budget) that the record has already are not run again, and a stopped search goes on from FOLDER.
Every setting of a cell costs the same number of tokens, counted from its plan; those of `adaptive` are counted picture
by picture while it runs. An answer is right if every token of the true one, forced, is the likeliest.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

import foveate as fv
from foveate._versions import commit, versions
from foveate._writing import publish
from foveate.embedded import TASKS
from foveate.embedded.questions import TEXT_TASKS
from foveate.errors import SettingError
from foveate.eval.embedded.pictures import PictureQuestion, questions
from foveate.eval.stats import Resampled, estimate
from foveate.methods.base import Method
from foveate.methods.controls import same_schedule
from foveate.methods.names import parse
from foveate.methods.random import Random
from foveate.methods.uniform import Uniform
from foveate.tune.costs import Limit, Prices, solved
from foveate.tune.forcing import targets
from foveate.tune.race import Journal, Race
from foveate.tune.samples import About, grouped
from foveate.tune.schedules import published_point, tune_schedule
from foveate.tune.thresholding import adaptive, spent

HERE = Path(__file__).resolve().parent
METHODS = ("v2drop", "visiondrop", "fastv", "pyramiddrop")
BUDGETS = (64, 32, 128, 192)
SEARCH_SEED, CALIBRATION_SEED, HELD_OUT = 900, 910, (920, 921)
SEARCHED, CALIBRATED, JUDGED = 40, 30, 20
"""Pictures to tune with, to calibrate thresholds with, and to judge with (of each held-out seed)."""
DRAWN, STEPS = 40, 60
ASKED = 3
"""Most questions a picture while searching for a method that reads the question: each costs a prefill."""


def pictures_of(seed: int, count: int, most: int = 99, tasks: Sequence[str] = TASKS) -> list[PictureQuestion]:
    """The questions about the first `count` pictures of a seed, at most so many of each."""
    chosen: list[PictureQuestion] = []
    drawn = questions(tasks, 12 * count, (seed,))
    by_picture = [list(about) for _, about in groupby(drawn, key=lambda question: question.picture)]
    for about in by_picture[:count]:
        chosen += sorted(about, key=lambda question: question.question.task not in TEXT_TASKS)[:most]
    return chosen


def asked(vlm: Any, chosen: Sequence[PictureQuestion]) -> list[Any]:
    """Questions as prompts; a picture is drawn once."""
    prompts = []
    for _, about in groupby(chosen, key=lambda question: question.picture):
        listed = list(about)
        shown = listed[0].shown()
        prompts += [vlm.prepare(shown, question.question.question) for question in listed]
    return prompts


class Judge:
    """The held-out questions with their true answers, and what settings come to on them."""

    def __init__(self, vlm: Any, chosen: Sequence[PictureQuestion], journal: Path) -> None:
        self.vlm = vlm
        self.chosen = chosen
        self.pictures = grouped(vlm, asked(vlm, chosen))
        ends = iter(chosen)
        wanted = {}
        self.right: list[bool] = []
        for about in self.pictures:
            ids = [self._ids(next(ends).question.answer) for _ in about.samples]
            wanted[about.key] = targets(vlm.model, about, ids)
            self.right += [self._hit(target.ids, target.likeliest) for target in wanted[about.key]]
        self.race = Race(vlm.model, wanted, Journal(journal, "held-out"))
        self.resampled = Resampled([question.picture for question in chosen], [question.seed for question in chosen])

    def _ids(self, answer: str) -> tuple[int, ...]:
        tokenizer = self.vlm.tokenizer
        return (*tokenizer(answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id)

    @staticmethod
    def _hit(ids: tuple[int, ...], likeliest: torch.Tensor) -> bool:
        return bool((likeliest[:, 0] == torch.tensor(ids)).all())

    def full(self) -> dict[str, Any]:
        """The full model's accuracy."""
        return self.resampled.proportion(np.array(self.right, dtype=float)).to_dict()

    def marks(self, method: Method) -> Any:
        """(questions,) 1 where the answer is right."""
        return self.race.column(method, self.pictures, lambda outcome: float(outcome.agrees))

    def row(self, name: str, methods: Sequence[Method], tokens: float, against: Any = None) -> dict[str, Any]:
        """A setting's accuracy, and how far it is ahead of `against`, (questions,) marks."""
        marks = np.mean([self.marks(method) for method in methods], axis=0)
        of_text = np.array([question.question.task in TEXT_TASKS for question in self.chosen])
        sketched = np.array([question.picture % 2 == 1 for question in self.chosen])
        row = {
            "name": name,
            "method": methods[0].to_dict(),
            "tokens": round(tokens, 3),
            "accuracy": self.resampled.proportion(marks).to_dict(),
            "text": round(float(marks[of_text].mean()), 4),
            "other": round(float(marks[~of_text].mean()), 4),
            "scenes": round(float(marks[~sketched].mean()), 4),
            "sketches": round(float(marks[sketched].mean()), 4),
        }
        if against is not None:
            row["ahead"] = estimate(self.resampled.means(marks - against)).to_dict()
        return row


def cell(
    vlm: Any, judge: Judge, calibration: Sequence[About], name: str, budget: int, work: Path
) -> Iterator[dict[str, Any]]:
    """One method at one budget: its search and the rows of its table, with a few rows more each time."""
    method = parse(name)
    limit = Limit("tokens", budget)
    reads = name in ("fastv", "pyramiddrop")
    chosen = pictures_of(SEARCH_SEED, SEARCHED, ASKED if reads else 99)
    begun, cpu = time.monotonic(), time.process_time()
    state = work / f"{name}-{budget}.jsonl"
    tuned = tune_schedule(
        vlm, asked(vlm, chosen), method, limit, state=state, name="embedded", drawn=DRAWN, steps=STEPS
    )
    minutes, cpu_minutes = (time.monotonic() - begun) / 60, (time.process_time() - cpu) / 60
    prices = Prices(vlm.model, [sample for about in judge.pictures for sample in about.samples], "tokens")
    space = method.space(prices.depth)
    assert space is not None
    start = published_point(method, space, prices, limit)
    published = None if start is None else solved(space, start, prices, budget)
    best = next(row.method for row in tuned.rows if row.name == "grid")
    base = None if published is None else judge.marks(published)
    settings = {"published": published, "small grid": best, "tuned": tuned.method}
    rows: list[dict[str, Any]] = []
    found = {
        "method": name,
        "budget": budget,
        "complete": False,
        "chosen": tuned.chosen,
        "verdict": tuned.verdict,
        "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu_minutes, 1),
        "tried": tuned.tried,
        "runs": tuned.runs,
        "pictures": list(tuned.pictures),
        "rows": rows,
    }
    for label, setting in settings.items():
        if setting is not None:
            rows.append(judge.row(label, [setting], prices.tokens(setting), base))
    yield found
    for label, setting in settings.items():
        if setting is None or label == "small grid":
            continue
        draws = [control(prices, setting, Random(seed=seed)) for seed in range(2)]
        rows.append(judge.row(f"random at {label}", draws, prices.tokens(draws[0]), base))
        uniform = control(prices, setting, Uniform())
        rows.append(judge.row(f"uniform at {label}", [uniform], prices.tokens(uniform), base))
        yield found
    if name == "v2drop":
        rows += variations(judge, prices, tuned.method, base)
        yield found
    for label in ("tuned", "published"):
        if settings[label] is not None:
            rows += adaptive_row(vlm, judge, calibration, f"adaptive, {label}", settings[label], base)
    yield found | {"complete": True}


def control(prices: Prices, method: Method, kind: Any) -> Method:
    """Random or uniform dropping at a method's own counts."""
    return same_schedule(prices.plan(method), prices.entered, control=kind)


def adaptive_row(
    vlm: Any, judge: Judge, calibration: Sequence[About], name: str, method: Method, base: Any
) -> list[dict[str, Any]]:
    """The method with thresholds for counts, and what it truly spends; none where it does not rank by scores."""
    try:
        found = adaptive(vlm.model, method, calibration)
    except SettingError:
        return []
    calibrated = spent(vlm.model, found, calibration)
    new = spent(vlm.model, found, judge.pictures)
    row = judge.row(name, [found], float(np.mean(new)), base)
    row |= {
        "calibrated": round(float(np.mean(calibrated)), 3),
        "fewest": round(min(new), 2),
        "most": round(max(new), 2),
    }
    return [row]


def variations(judge: Judge, prices: Prices, method: Any, base: Any) -> list[dict[str, Any]]:
    """Adjacent layers, longer windows and the whole path, at the tuned cuts and metric."""
    rows = []
    for over, window in (("net", 1), ("net", 2), ("path", 1)):
        if method.layers[0] < window:
            continue
        changed = replace(method, over=over, window=window)
        label = "path" if over == "path" else f"window {window}"
        rows.append(judge.row(f"{label}, tuned schedule", [changed], prices.tokens(changed), base))
    return rows


def main() -> None:
    """Run the cells that the record has not, and write it after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--work", type=Path, default=Path("tuning-work"))
    parser.add_argument("--out", type=Path, default=HERE / "embedded.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    vlm = fv.load()
    record: dict[str, Any] = {"cells": []}
    if options.out.exists():
        record = json.loads(options.out.read_text(encoding="utf-8"))
    cells = {(one["method"], one["budget"]): one for one in record["cells"]}
    wanted = [(name, budget) for name in options.methods for budget in options.budgets]
    held = [question for seed in HELD_OUT for question in pictures_of(seed, JUDGED)]
    judge = Judge(vlm, held, options.work / "held-out.jsonl")
    calibration = grouped(vlm, asked(vlm, pictures_of(CALIBRATION_SEED, CALIBRATED, 1)))
    for name, budget in wanted:
        if cells.get((name, budget), {}).get("complete"):
            continue
        for found in cell(vlm, judge, calibration, name, budget, options.work):
            cells[name, budget] = found
            about = {
                "full": judge.full(),
                "questions": len(held),
                "pictures": len(judge.pictures),
                "seeds": {"search": SEARCH_SEED, "calibration": CALIBRATION_SEED, "held-out": list(HELD_OUT)},
                "search": {"pictures": SEARCHED, "drawn": DRAWN, "steps": STEPS, "questions of text readers": ASKED},
                "cores": os.cpu_count(),
                "versions": versions(),
                "commit": commit(),
            }
            write(options.out, {"cells": list(cells.values()), **about})
        print(f"{name} at {budget}: {cells[name, budget]['verdict']}", flush=True)


def write(out: Path, record: dict[str, Any]) -> None:
    """Write the record whole or not at all."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    publish(out, lambda part: part.write_text(text, encoding="utf-8"), force=True)


if __name__ == "__main__":
    main()
