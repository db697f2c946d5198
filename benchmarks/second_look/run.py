"""Measure what a second look costs and if its promise holds. Writes record.json in this folder and the guide's tables.

    python benchmarks/second_look/run.py                       # about 15 minutes on one core
    python benchmarks/second_look/run.py --out small.json --pool 30 --fresh 20 --timed 3 --calibrations 20

The embedded model answers one question about each picture, in full and with three methods at several budgets.
Thresholds are calibrated on many samples from a pool of pictures, and tested on fresh pictures from other seeds. Each
curve is compared with the method at fixed budgets, and with asking again at random. Times come from interleaved rounds,
with the full model twice as a control.
"""

import argparse
import json
import platform
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import foveate as fv
from foveate.ask.answers import Answerer, in_order
from foveate.ask.generation import Generation
from foveate.bench.stopwatch import clock_of
from foveate.bench.timing import ratio, rounds
from foveate.contract.method import Method
from foveate.embedded import TASKS
from foveate.engine.extensions.tower_memo import TowerMemo
from foveate.eval.asked import Asked, prompts_of
from foveate.eval.held_out import questions
from foveate.naming import method_of
from foveate.plain.stats import RISK
from foveate.plain.table import Column, Table, between
from foveate.runs.versions import commit, versions
from foveate.tuning.promise import threshold

sys.path.insert(0, str(Path(__file__).parents[1] / "real"))
from sure import auroc

OUT = Path(__file__).with_name("record.json")
PAGE, GUIDE = Path(__file__).with_name("README.md"), Path(__file__).parents[2] / "docs/guides/second-look.md"
LOOKS = ("vidcom2 64", "divprune 64", "vispruner 64")
FIXED = ("vidcom2 128", "vidcom2 192")
"""Fixed budgets to compare with."""
PROMISED = "vidcom2 64"
AGREEMENTS = (0.9, 0.95, 0.98, 0.99)
SAMPLES = 300
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
SEEDS = {"pool": (1201,), "fresh": (1301, 1302)}
FULL = "full"

Row = Mapping[str, Any]


# -- answers ------------------------------------------------------------------------------------------------------


def one_a_picture(count: int, seeds: Sequence[int]) -> list[Asked]:
    """One question about each of `count` pictures, drawn by seed."""
    of_picture: dict[Any, list[Asked]] = {}
    for question in questions(TASKS, 9 * count, seeds):
        of_picture.setdefault(question.picture, []).append(question)
    drawn = random.Random(0)
    chosen = [drawn.choice(group) for group in of_picture.values()]
    return drawn.sample(chosen, count)


def settings() -> dict[str, Method | None]:
    """The full model and the methods at their budgets, by name."""
    named = {name: method_of(name.split()[0], tokens=float(name.split()[1])) for name in (*LOOKS, *FIXED)}
    return {FULL: None, **named}


def answered(vlm: fv.VLM, asked: Sequence[Asked]) -> list[Row]:
    """A row for each question: its task, and for each setting [confidence, agrees, right, tokens, FLOPs].

    `agrees` is 1 if the answer equals the full model's; `right` is 1 if it is correct.
    """
    rows = []
    for group in (asked[start : start + 8] for start in range(0, len(asked), 8)):
        prompts, tower = prompts_of(vlm, group), TowerMemo()
        columns = {}
        for name, method in settings().items():
            answerer = Answerer(vlm, method, Generation(), 8, confidence=True, tower=tower)
            replies = answerer.replies(range(len(prompts)), lambda place, _, prompts=prompts: prompts[place])
            columns[name] = list(in_order(replies))
        for place, question in enumerate(group):
            row: dict[str, Any] = {"task": question.task}
            for name, answers in columns.items():
                answer = answers[place]
                agrees, right = answer.text == columns[FULL][place].text, answer.text in question.labels
                row[name] = [round(answer.confidence, 7), int(agrees), int(right), answer.spent, answer.flops]
            rows.append(row)
        print(f"{len(rows)} of {len(asked)} questions", file=sys.stderr, flush=True)
    return rows


# -- figures ------------------------------------------------------------------------------------------------------


def of_share(rows: Sequence[Row], name: str, sure: float) -> dict[str, float]:
    """Results of a threshold: shares asked again, agreeing and right; tokens and FLOPs of both looks together."""
    again = [not row[name][0] >= sure for row in rows]
    chosen = [row[FULL if look else name] for row, look in zip(rows, again, strict=True)]
    tokens = [row[name][3] + look * row[FULL][3] for row, look in zip(rows, again, strict=True)]
    flops = sum(row[name][4] + look * row[FULL][4] for row, look in zip(rows, again, strict=True))
    return {
        "again": fmean(again),
        "agrees": fmean(one[1] for one in chosen),
        "right": fmean(one[2] for one in chosen),
        "tokens": fmean(tokens),
        "flops": flops / sum(row[FULL][4] for row in rows),
    }


def curve(rows: Sequence[Row], name: str) -> list[dict[str, float]]:
    """Results of asking the least confident share again, and the expected agreement of asking as many at random."""
    ordered = sorted(row[name][0] for row in rows)
    alone = fmean(row[name][1] for row in rows)
    points = []
    for share in SHARES:
        results = of_share(rows, name, ordered[round(share * len(ordered))])
        points.append({**results, "random": alone + results["again"] * (1 - alone)})
    return points


def promise(pool: Sequence[Row], fresh: Sequence[Row], name: str, agreement: float, draws: int) -> dict[str, float]:
    """Calibrate on samples of the pool and test on fresh pictures, and on samples of all, whose risk is known."""
    everyone = [*pool, *fresh]
    values: dict[str, list[float]] = {"fresh": [], "known": [], "again": [], "tokens": [], "flops": []}
    drawn = random.Random(0)
    for _ in range(draws):
        for where, tested, samples in (
            ("fresh", fresh, drawn.choices(pool, k=SAMPLES)),
            ("known", everyone, drawn.choices(everyone, k=SAMPLES)),
        ):
            sure = threshold([(row[name][0], row[name][1]) for row in samples], agreement)
            figures = of_share(tested, name, float("inf") if sure is None else sure)
            values[where].append(1 - figures["agrees"])
            if where == "fresh":
                for figure in ("again", "tokens", "flops"):
                    values[figure].append(figures[figure])
    return {
        "agreement": agreement,
        "samples": SAMPLES,
        "above": fmean(value > 1 - agreement for value in values["known"]),
        "above_fresh": fmean(value > 1 - agreement for value in values["fresh"]),
        "differ": fmean(values["fresh"]),
        "again": fmean(values["again"]),
        "tokens": fmean(values["tokens"]),
        "flops": fmean(values["flops"]),
    }


def by_task(pool: Sequence[Row], fresh: Sequence[Row], name: str, agreement: float) -> list[dict[str, Any]]:
    """Calibrate on the whole pool and test on fresh pictures, by task."""
    sure = threshold([(row[name][0], row[name][1]) for row in pool], agreement)
    tasks = []
    for task in (None, *TASKS):
        rows = [row for row in fresh if task in (None, row["task"])]
        if rows:
            figures = of_share(rows, name, float("inf") if sure is None else sure)
            tasks.append({"task": task, "questions": len(rows), **figures})
    return tasks


def shifted(pool: Sequence[Row], fresh: Sequence[Row], name: str, agreement: float) -> dict[str, float]:
    """Calibrate without the tasks of `UNSEEN` and test on these only, which no promise covers."""
    known = [row for row in pool if row["task"] not in UNSEEN]
    sure = threshold([(row[name][0], row[name][1]) for row in known], agreement)
    rows = [row for row in [*pool, *fresh] if row["task"] in UNSEEN]
    figures = of_share(rows, name, float("inf") if sure is None else sure)
    return {"samples": len(known), "questions": len(rows), "agreement": agreement, **figures}


def times(vlm: fv.VLM, asked: Sequence[Asked], clock: str) -> list[dict[str, Any]]:
    """Ratios of the time of a single answer, from the prompt to its last token, to the full model's."""
    read = clock_of(clock)
    seconds: dict[str, list[float]] = {}
    look = {name: {"method": PROMISED.split()[0], "tokens": float(PROMISED.split()[1])} for name in ("few", "both")}
    calls: dict[str, dict[str, Any]] = {FULL: {}, "full again": {}}
    calls |= {"few tokens": {**look["few"], "sure": 0.0}, "asked again": {**look["both"], "sure": 1.0}}
    for question in asked:
        shown = question.media()

        def timed(call: Callable[[], object]) -> float:
            start = read()
            call()
            return read() - start

        runs = {name: partial(timed, partial(vlm.ask, shown, question.text, **how)) for name, how in calls.items()}
        for name, value in next(iter(rounds(runs, 1))).items():
            seconds.setdefault(name, []).append(value)
    return [{"run": name, **ratio(seconds[name], seconds[FULL]).to_dict()} for name in seconds if name != FULL]


# -- tables -------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def tables(record: Mapping[str, Any]) -> list[Table]:
    """The tables of a record."""
    heads = [
        Column(name, right=True) for name in ("Again, %", "Tokens", "FLOPs, %", "Agree, %", "Right, %", "Random, %")
    ]
    rows: list[Sequence[str]] = []
    for name, points in record["curves"].items():
        for place, point in enumerate(points):
            label = name if place == 0 else ""
            cells = [percent(point["again"]), f"{point['tokens']:.0f}", *(percent(point[key]) for key in KEYS)]
            rows.append((label, *cells, percent(point["random"])))
    for name, point in record["fixed"].items():
        rows.append((f"{name}, fixed", "", f"{point['tokens']:.0f}", *(percent(point[key]) for key in KEYS), ""))
    curves = Table("", ["First look", *heads], rows)
    heads = [
        Column(name, right=True)
        for name in ("Samples", "Above, %", "Above, fresh, %", "Differ, %", "Again, %", "Tokens", "FLOPs, %")
    ]
    rows = []
    for name, promises in record["promises"].items():
        for place, one in enumerate(promises):
            cells = [percent(one[key]) for key in ("above", "above_fresh", "differ", "again")]
            label = name if place == 0 else ""
            share = f"{100 * one['agreement']:.0f} %"
            rows.append((label, share, str(one["samples"]), *cells, f"{one['tokens']:.0f}", percent(one["flops"])))
    promised = Table("", ["First look", "Promise", *heads], rows)
    heads = [Column(name, right=True) for name in ("Questions", "Again, %", "Differ, %")]
    rows = [
        (row["task"] or "all", str(row["questions"]), percent(row["again"]), percent(1 - row["agrees"]))
        for row in record["tasks"]
    ]
    tasks = Table("", ["Task", *heads], rows)
    rows = [(row["run"], f"{row['median']:.2f} [{row['low']:.2f}, {row['high']:.2f}]") for row in record["times"]]
    return [curves, promised, tasks, Table("", ["Answer", "Share of the full model's time"], rows)]


UNSEEN = ("list left to right", "list top to bottom", "relation", "count")
KEYS = ("flops", "agrees", "right")


def unlike(shifts: Sequence[Mapping[str, float]]) -> str:
    """A sentence on calibration samples that differ from the questions asked later."""
    sentences = [
        f"at {100 * shift['agreement']:.0f} %, {percent(1 - shift['agrees'])} % differ and "
        f"{percent(shift['again'])} % are asked again"
        for shift in shifts
    ]
    first = shifts[0]
    return (
        f"When the samples differ from the questions: calibrated on {first['samples']:.0f} without lists, relations "
        f"and counts, and tested on {first['questions']:.0f} of these: {'; '.join(sentences)}."
    )


def guide(record: Mapping[str, Any]) -> str:
    """The guide's section on a record: what is promised, and what it takes."""
    _, promised, _, timed = (table.to_markdown() for table in tables(record))
    return f"{asked(record)}\n\n{promised}\nTime of a single answer, {PROMISED}, on a CPU:\n\n{timed}"


def asked(record: Mapping[str, Any]) -> str:
    """A sentence on the pictures of a record, and the full model's accuracy."""
    about = record["about"]
    return (
        f"{about['pool']} pictures to calibrate, {about['fresh']} fresh ones from other seeds, one question each; "
        f"commit {str(about['commit'])[:7]}. The full model is right in {percent(record['full_right'])} %."
    )


def page(record: Mapping[str, Any]) -> str:
    """The tables of README.md."""
    curves, promised, tasks, timed = (table.to_markdown() for table in tables(record))
    signals = ", ".join(f"{name} {value:.2f}" for name, value in record["auroc"].items())
    return (
        f"{asked(record)}\n\n{curves}\n"
        f"How well the confidence predicts the full model's answer (AUROC): {signals}.\n\n{promised}\n"
        f"{PROMISED} at 98 %, by task:\n\n{tasks}\n"
        f"{unlike(record['shifted'])}\n\nTime of a single answer, {PROMISED}, on a CPU:\n\n{timed}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, calibrate, test and time, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--pool", type=int, default=320, help="number of pictures to calibrate on")
    parser.add_argument("--fresh", type=int, default=220, help="number of pictures to test on")
    parser.add_argument("--timed", type=int, default=20, help="number of fresh questions to time")
    parser.add_argument("--calibrations", type=int, default=500)
    parser.add_argument("--clock", default="cpu", choices=("cpu", "wall"))
    parser.add_argument("--answers", type=Path, help="reuse the answers and times of this record and run no model")
    options = parser.parse_args(arguments)
    if options.answers is not None:
        kept = json.loads(options.answers.read_text(encoding="utf-8"))
        write(kept, kept["answers"]["pool"], kept["answers"]["fresh"], kept["about"]["calibrations"], options.out)
        return
    vlm = fv.load(device="cpu")
    asked = {name: one_a_picture(getattr(options, name), seeds) for name, seeds in SEEDS.items()}
    timed = times(vlm, asked["fresh"][: options.timed], options.clock)
    pool, fresh = (answered(vlm, asked[name]) for name in SEEDS)
    about = {
        "seeds": SEEDS, "calibrations": options.calibrations, "risk": RISK, "commit": commit(), "versions": versions(),
        "machine": platform.machine(), "threads": torch.get_num_threads(), "clock": options.clock,
    }  # fmt: skip
    write({"about": about, "times": timed}, pool, fresh, options.calibrations, options.out)


def write(ran: Mapping[str, Any], pool: Sequence[Row], fresh: Sequence[Row], draws: int, out: Path) -> None:
    """Compute all results from the answers, write the record, and fill in the pages if the record is this folder's."""
    record = {
        "about": {**ran["about"], "pool": len(pool), "fresh": len(fresh)},
        "full_right": fmean(row[FULL][2] for row in fresh),
        "curves": {name: curve(fresh, name) for name in LOOKS},
        "fixed": {name: of_share(fresh, name, 0.0) for name in FIXED},
        "auroc": {name: auroc([(row[name][0], row[name][1]) for row in [*pool, *fresh]]) for name in (*LOOKS, *FIXED)},
        "promises": {name: [promise(pool, fresh, name, one, draws) for one in AGREEMENTS] for name in LOOKS},
        "tasks": by_task(pool, fresh, PROMISED, 0.98),
        "shifted": [shifted(pool, fresh, PROMISED, agreement) for agreement in AGREEMENTS[:3]],
        "times": ran["times"],
        "answers": {"pool": pool, "fresh": fresh},
    }
    out.write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(page(record))
    if out == OUT:
        for path, fill in ((PAGE, page), (GUIDE, guide)):
            path.write_text(between(path.read_text(encoding="utf-8"), "second look", fill(record)), encoding="utf-8")


if __name__ == "__main__":
    main()
