"""Tune methods on the embedded model, and compare each on pictures nobody saw: schedule, score and count apart.

    python benchmarks/tuning/run.py --travel --further [--methods NAME …] [--budgets N …] [--work FOLDER] [--out FILE]

Cells (a method at a budget) that the record has already are not run again, and a stopped search goes on from FOLDER.
Every setting of a cell costs the same number of tokens, counted from its plan. An answer is right if every token of the
true one, forced, is the likeliest.
"""

import argparse
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from judging import Judge, asked, pictures_of

import foveate as fv
from foveate._versions import commit, versions
from foveate._writing import publish
from foveate.contract.catalogue import from_dict
from foveate.contract.method import Method
from foveate.contract.naming import parse
from foveate.embedded.questions import TEXT_TASKS
from foveate.eval.embedded.pictures import PictureQuestion
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.methods.v2drop import V2Drop
from foveate.tune.costs import Limit, Prices, solved
from foveate.tune.schedules import tune_schedule
from foveate.tune.starting import published_point
from foveate.tune.tuned import Tuned

HERE = Path(__file__).resolve().parent
METHODS = ("v2drop", "visiondrop", "fastv", "pyramiddrop")
DRAWS = 2
BUDGETS = (64, 32, 128, 192)
SEARCH_SEED, HELD_OUT = 900, (920, 921)
FURTHER = (950, 951, 952, 953)
JUDGED = 25
"""Pictures of each held-out seed."""


@dataclass(frozen=True)
class Effort:
    """How much is searched, so that it takes some ten minutes.

    A method that reads the question runs the picture with every question, so it gets less.

    Attributes:
        pictures: To tune with.
        asked: Most questions a picture, also of those to judge with.
        drawn: Random settings.
        steps: Local ones.
    """

    pictures: int
    asked: int
    drawn: int
    steps: int


READING = Effort(80, 3, 30, 60)
EFFORTS = {
    "v2drop": Effort(100, 99, 40, 240),
    "visiondrop": Effort(80, 99, 40, 60),
    "fastv": READING,
    "pyramiddrop": READING,
}


def effort(name: str, budget: int = 0) -> Effort:
    """How much is searched for a method: half as much at the wide budgets, where little is lost."""
    how = EFFORTS[name]
    if budget >= 128:
        return replace(how, drawn=how.drawn // 2, steps=how.steps // 2)
    return how


def cell(vlm: Any, judge: Judge, name: str, budget: int, work: Path) -> Iterator[dict[str, Any]]:
    """One method at one budget: its search and the rows of its table, with a few rows more each time."""
    method = parse(name)
    limit = Limit("tokens", budget)
    state = work / f"{name}-{budget}"
    spending = Spending(state.with_suffix(".time"))
    tuned = searched(vlm, name, limit, state, effort(name, budget), spending.note)
    minutes, cpu_minutes = spending.note()
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
        draws = [control(prices, setting, Random(seed=seed)) for seed in range(DRAWS)]
        rows.append(judge.row(f"random at {label}", draws, prices.tokens(draws[0]), base))
        uniform = control(prices, setting, Uniform())
        rows.append(judge.row(f"uniform at {label}", [uniform], prices.tokens(uniform), base))
        yield found
    if name == "v2drop":
        rows += variations(judge, prices, tuned.method, base)
        yield found
    yield found | {"complete": True}


class Spending:
    """Minutes of a search, and of one core, over all runs that it took: kept in a file while it goes on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = (0.0, 0.0)
        if path.exists():
            self._before = tuple(json.loads(path.read_text(encoding="utf-8")))
        self._begun, self._cpu = time.monotonic(), time.process_time()

    def note(self, _: object = None) -> tuple[float, float]:
        """Write down and answer what has been spent so far."""
        minutes = self._before[0] + (time.monotonic() - self._begun) / 60
        of_core = self._before[1] + (time.process_time() - self._cpu) / 60
        self._path.write_text(json.dumps([minutes, of_core]), encoding="utf-8")
        return minutes, of_core


def searched(
    vlm: Any,
    name: str,
    limit: Limit,
    state: Path,
    how: Effort,
    advance: Callable[[str], object] | None = None,
    only: Callable[[PictureQuestion], bool] | None = None,
) -> Tuned:
    """A search, on all questions of its seed or on some."""
    chosen = [question for question in pictures_of(SEARCH_SEED, how.pictures, how.asked) if not only or only(question)]
    return tune_schedule(
        vlm,
        asked(vlm, chosen),
        parse(name),
        limit,
        state=state,
        name="embedded",
        drawn=how.drawn,
        steps=how.steps,
        advance=advance,
    )


def control(prices: Prices, method: Method, kind: Any) -> Method:
    """Random or uniform dropping at a method's own counts."""
    return same_schedule(prices.plan(method), prices.entered, control=kind)


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


# -- how far a setting travels ------------------------------------------------------------------------------------


def travel(vlm: Any, judge: Judge, cells: dict[tuple[str, int], dict[str, Any]], work: Path) -> list[dict[str, Any]]:
    """V2Drop tuned at one budget and used at another; tuned on some questions or pictures, and judged on all kinds."""
    prices = Prices(vlm.model, [sample for about in judge.pictures for sample in about.samples], "tokens")
    space = V2Drop().space(prices.depth)
    assert space is not None
    rows = []
    for (name, budget), found in cells.items():
        if name != "v2drop":
            continue
        row = next(row for row in found["rows"] if row["name"] == "tuned")
        tuned = from_dict(row["method"])
        kept = tuple((key, getattr(tuned, key)) for key, _ in space.usual)
        point = space.point_of(prices.plan(tuned), prices.entered, kept)
        assert point is not None
        for other in BUDGETS:
            method = solved(space, point, prices, other)
            if method is not None:
                rows.append(judge.row(f"tuned at {budget}, used at {other}", [method], prices.tokens(method)))
    halves: dict[str, Callable[[PictureQuestion], bool]] = {
        "text": lambda question: question.question.task in TEXT_TASKS,
        "other questions": lambda question: question.question.task not in TEXT_TASKS,
        "scenes": lambda question: question.picture % 2 == 0,
        "sketches": lambda question: question.picture % 2 == 1,
    }
    for name, only in halves.items():
        how = Effort(60, 99, 20, 40)
        tuned = searched(
            vlm, "v2drop", Limit("tokens", 64), work / f"half-{name.split()[0]}.jsonl", how, only=only
        ).method
        rows.append(judge.row(f"tuned at 64 on {name} only", [tuned], prices.tokens(tuned)))
    return rows


def further(vlm: Any, cells: dict[tuple[str, int], dict[str, Any]], work: Path) -> dict[str, Any]:
    """V2Drop's settings on pictures of more seeds: two seeds leave wide intervals."""
    chosen = [question for seed in FURTHER for question in pictures_of(seed, JUDGED)]
    judge = Judge(vlm, chosen, work / "further.jsonl")
    rows = []
    for (name, budget), found in cells.items():
        if name != "v2drop":
            continue
        settings = {row["name"]: row for row in found["rows"]}
        base = None
        for label in ("published", "small grid", "tuned"):
            if label not in settings:
                continue
            method = from_dict(settings[label]["method"])
            tokens = settings[label]["tokens"]
            rows.append({"budget": budget, **judge.row(label, [method], tokens, base)})
            if label == "published":
                base = judge.marks(method)
    return {
        "seeds": list(FURTHER),
        "pictures": len(judge.pictures),
        "questions": len(chosen),
        "full": judge.full(),
        "rows": rows,
    }


# -- the record ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the cells that the record has not, and write it after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--travel", action="store_true", help="how far V2Drop's settings travel, once they are there")
    parser.add_argument("--further", action="store_true", help="V2Drop's settings on more seeds, once they are there")
    parser.add_argument("--work", type=Path, default=Path("tuning-work"))
    parser.add_argument("--out", type=Path, default=HERE / "embedded.json")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    vlm = fv.load()
    judges = {most: judge_of(vlm, most, options.work) for most in {EFFORTS[name].asked for name in options.methods}}
    for name in options.methods:
        for budget in options.budgets:
            judge = judges[EFFORTS[name].asked]
            found = cells_of(read(options.out)).get((name, budget), {"complete": False})
            if not found["complete"]:
                about = {"full": judge.full(), "questions": len(judge.chosen), "search": asdict(effort(name, budget))}
                for found in cell(vlm, judge, name, budget, options.work):
                    add(options.out, judge, cell=found | about)
                print(f"{name} at {budget}: {found['chosen']}", flush=True)
    if options.travel:
        judge = judges[EFFORTS["v2drop"].asked]
        add(options.out, judge, travel=travel(vlm, judge, cells_of(read(options.out)), options.work))
    if options.further:
        judge = judges[EFFORTS["v2drop"].asked]
        add(options.out, judge, further=further(vlm, cells_of(read(options.out)), options.work))


def judge_of(vlm: Any, most: int, work: Path) -> Judge:
    """The held-out questions, at most so many a picture."""
    held = [question for seed in HELD_OUT for question in pictures_of(seed, JUDGED, most)]
    return Judge(vlm, held, work / f"held-out-{most}.jsonl")


def read(out: Path) -> dict[str, Any]:
    """The record so far."""
    if not out.exists():
        return {"cells": []}
    record: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return record


def cells_of(record: dict[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """The record's cells by method and budget."""
    return {(one["method"], one["budget"]): one for one in record["cells"]}


def add(out: Path, judge: Judge, cell: dict[str, Any] | None = None, **more: Any) -> None:
    """Put a cell, or more, into the record; two runs side by side may both do so."""
    with Path(__file__).open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = read(out)
        cells = cells_of(record)
        if cell is not None:
            cells[cell["method"], cell["budget"]] = cell
        about = {
            "pictures": len(judge.pictures),
            "seeds": {"search": SEARCH_SEED, "held-out": list(HELD_OUT)},
            "cores": os.cpu_count(),
            "versions": versions(),
            "commit": commit(),
        }
        order = sorted(cells.values(), key=lambda one: (METHODS.index(one["method"]), BUDGETS.index(one["budget"])))
        write(out, {**record, "cells": order, **about, **more})


def write(out: Path, record: dict[str, Any]) -> None:
    """Write the record whole or not at all."""
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    publish(out, lambda part: part.write_text(text, encoding="utf-8"), force=True)


if __name__ == "__main__":
    main()
