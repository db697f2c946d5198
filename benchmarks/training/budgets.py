"""Train the embedded model further, with all tokens or with few, and ask it at several budgets.

    python benchmarks/training/budgets.py            # an hour on one core; after a stop, it goes on where it was
    python benchmarks/training/budgets.py --table    # write the guide's table from the existing record

Each seed draws other pictures and questions to train on. The model is asked about held-out pictures, the same for all
seeds, and an answer must be right word for word. Writes benchmarks/training/budgets.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fitting import SETTINGS, Fitting, Pair, pictures

from foveate.embedded.questions import all_questions, evenly, one_per_task
from foveate.embedded.scenes import Scene, rng_for, scene
from foveate.plain.stats import Resampled, estimate
from foveate.plain.table import between
from foveate.runs.versions import commit, versions

OUT = Path(__file__).with_suffix(".json")
GUIDE = Path(__file__).parents[2] / "docs/guides/training.md"
TRAINED = ("full", "divprune 1/9", "random 1/9")
FIRST, APART, TEST = 910_000_000, 1_000_000, 50_000
"""The first picture that trains, the distance between seeds, and the first picture that is asked about."""
STEPS, TOGETHER, EACH = 60, 4, 12
"""Steps, pictures a step, and questions about a picture."""


def several(number: int, count: int = EACH) -> tuple[Scene, list[Pair]]:
    """Draw a picture to train on, with up to `count` questions, all tasks and all answers of a task equally likely."""
    drawn, rng = scene("train", number), rng_for("train", number, purpose=4)
    left, pairs = all_questions(drawn, rng), []
    while left and len(pairs) < count:
        task = list(left)[rng.integers(len(left))]
        question = evenly(left[task], rng)
        pairs.append((question.question, question.answer))
        left[task].remove(question)
        if not left[task]:
            del left[task]
    return drawn, pairs


def asked(number: int) -> tuple[Scene, list[Pair]]:
    """Draw a held-out picture, with one question a task."""
    drawn = scene("held-out", number)
    return drawn, [(one.question, one.answer) for one in one_per_task(drawn, "held-out", number)]


def trained(name: str, seed: int, steps: int) -> tuple[Fitting, float]:
    """Train as a setting says. Returns the model, and the seconds of a core that it took."""
    fitting, seconds = Fitting(steps, seed), 0.0
    first = FIRST + seed * APART
    for step in range(steps):
        start = first + 10 * TOGETHER * step  # a picture may allow no question
        drawn = pictures(several, range(start, start + 10 * TOGETHER), TOGETHER)
        begin = time.process_time()
        fitting.fit(drawn, SETTINGS[name])
        seconds += time.process_time() - begin
    return fitting, seconds


def measure(seeds: int, steps: int, count: int, part: Path) -> list[dict[str, Any]]:
    """A row for each seed and kind of training: the marks of each question, by what is dropped. Rows go to `part`."""
    rows = [json.loads(line) for line in part.read_text().splitlines()] if part.exists() else []
    finished = {(row["trained"], row["seed"]) for row in rows}
    drawn = pictures(asked, range(TEST, TEST + 10 * count), count)
    for seed, name in [(0, "not"), *((seed, name) for seed in range(seeds) for name in TRAINED)]:
        if (name, seed) in finished:
            continue
        fitting, seconds = (Fitting(), 0.0) if name == "not" else trained(name, seed, steps)
        marks = {setting: fitting.marks(drawn, SETTINGS[setting]) for setting in SETTINGS}
        rows.append({"trained": name, "seed": seed, "seconds": seconds, "marks": marks})
        with part.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(f"{name}, seed {seed}: {seconds:.0f} s", flush=True)
    return rows


def table(record: dict[str, Any]) -> str:
    """Share of right answers by training and budget, and the difference from the model before training."""
    rows = record["rows"]
    (before,) = (row["marks"] for row in rows if row["trained"] == "not")
    seeds = max(row["seed"] for row in rows) + 1
    lines = [
        f"| trained | {' | '.join(SETTINGS)} |",
        f"|---|{'---|' * len(SETTINGS)}",
    ]
    for name in ("not", *TRAINED):
        own = [row for row in rows if row["trained"] == name]
        cells = [_cell([row["marks"][setting] for row in own], before[setting], name != "not") for setting in SETTINGS]
        lines.append(f"| {name.replace('full', 'all tokens')} | {' | '.join(cells)} |")
    questions, pictures_asked = sum(map(len, before["full"])), len(before["full"])
    lines += [
        "",
        f"Right answers to {questions} questions on {pictures_asked} held-out pictures in %, mean of {seeds} seeds. "
        f"Trained: {record['steps']} steps of {TOGETHER} new pictures with {EACH} questions. In brackets: the change, "
        "its 95 % interval over pictures and seeds. Columns are what is dropped when the model is asked.",
        "",
    ]
    return "\n".join(lines)


def _cell(marks: list[list[list[bool]]], before: list[list[bool]], changes: bool) -> str:
    """A share in %, and how much it changed with its interval. `marks` are by seed, picture and question."""
    flat = [np.array([mark for picture in seed for mark in picture], dtype=float) for seed in marks]
    share = 100 * float(np.mean(flat))
    if not changes:
        return f"{share:.1f}"
    old = np.array([mark for picture in before for mark in picture], dtype=float)
    groups = [number for number, picture in enumerate(before) for _ in picture]
    # Seeds are resampled with pictures: each resample of pictures takes as many seeds, drawn with replacement.
    resampled, rng = Resampled(groups), np.random.default_rng(0)
    by_seed = np.stack([resampled.means(values - old) for values in flat])  # (seeds, 1 + resamples)
    drawn = rng.integers(len(flat), size=(len(flat), by_seed.shape[1] - 1))
    means = np.take_along_axis(by_seed[:, 1:], drawn, axis=0).mean(axis=0)
    change = estimate(100 * np.append(by_seed[:, 0].mean(), means))
    return f"{share:.1f} ({change.value:+.1f} [{change.low:+.1f}, {change.high:+.1f}])"


def guide(page: str, record: dict[str, Any]) -> str:
    """The guide with the table of a record."""
    return between(page, "training-budgets", table(record))


def main(arguments: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--pictures", type=int, default=72, help="held-out pictures that are asked about")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="write the table from the existing record")
    options = parser.parse_args(arguments)
    if not options.table:
        torch.set_num_threads(1)
        part = options.out.with_suffix(".part.jsonl")
        record = {"commit": commit(), "versions": versions(), "steps": options.steps}
        record["rows"] = measure(options.seeds, options.steps, options.pictures, part)
        options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")
        part.unlink()
    record = json.loads(options.out.read_text(encoding="utf-8"))
    print(table(record))
    if options.out == OUT:
        GUIDE.write_text(guide(GUIDE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
