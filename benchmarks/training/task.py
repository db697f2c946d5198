"""Teach the embedded model a task that it does not know, with all vision tokens and with a third, against time.

    python benchmarks/training/task.py            # half an hour on one core; after a stop, it goes on where it was
    python benchmarks/training/task.py --table    # write the guide's table from the existing record

The task is about sizes: which thing in a drawing is the largest, which the smallest, and is one larger than another.
The model was never asked such questions. Both trainings see the same pictures in the same order, two a step, and are
asked about held-out pictures after as many seconds of a core. Writes benchmarks/training/task.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fitting import SETTINGS, Fitting, Pair, pictures

from foveate.embedded.scenes import Scene, rng_for, scene
from foveate.plain.stats import Resampled, estimate
from foveate.plain.table import between
from foveate.runs.versions import commit, versions

OUT = Path(__file__).with_suffix(".json")
GUIDE = Path(__file__).parents[2] / "docs/guides/training.md"
TRAINED = ("full", "divprune 1/3")
FIRST, APART, TEST = 970_000_000, 1_000_000, 80_000
CLEAR = 1.3
"""A thing is larger than another if its side is so many times as long."""
TOGETHER = 2


def sizes(split: str, number: int) -> tuple[Scene, list[Pair]]:
    """Draw a picture, and the questions about sizes that have one right answer."""
    drawn = scene(split, number)
    things = sorted(drawn.things, key=lambda thing: -thing.size)
    names = [thing.name for thing in things]
    pairs: list[Pair] = []
    if len(things) < 2 or len(set(names)) < len(names):
        return drawn, pairs
    if things[0].size >= CLEAR * things[1].size:
        pairs.append(("Which one is the largest?", names[0]))
        pairs.append(("What colour is the largest one?", things[0].colour))
    if things[-2].size >= CLEAR * things[-1].size:
        pairs.append(("Which one is the smallest?", names[-1]))
        pairs.append(("What shape is the smallest one?", things[-1].shape))
    rng = rng_for(split, number, purpose=5)
    clear = [
        (large, small)
        for place, large in enumerate(things)
        for small in things[place + 1 :]
        if large.size >= CLEAR * small.size
    ]
    for place in rng.permutation(len(clear))[:2]:
        large, small = clear[place]
        if rng.random() < 0.5:
            pairs.append((f"Is the {large.name} larger than the {small.name}?", "yes"))
        else:
            pairs.append((f"Is the {small.name} larger than the {large.name}?", "no"))
    return drawn, pairs


def measure(seeds: int, budget: float, count: int, part: Path) -> list[dict[str, Any]]:
    """A row for each seed, training and time: steps, seconds and marks. Finished trainings go to `part`."""
    rows = [json.loads(line) for line in part.read_text().splitlines()] if part.exists() else []
    finished = {(row["trained"], row["seed"]) for row in rows}
    test = pictures(lambda number: sizes("held-out", number), range(TEST, TEST + 20 * count), count)
    for seed, name in [(seed, name) for seed in range(seeds) for name in TRAINED]:
        if (name, seed) in finished:
            continue
        fitting, seconds, own = Fitting(seed=seed), 0.0, []
        asked = dict.fromkeys(("full", name))
        for share in (0.0, 0.25, 0.5, 1.0):
            while seconds < share * budget:
                first = FIRST + seed * APART + 20 * TOGETHER * fitting.step
                drawn = pictures(lambda at: sizes("train", at), range(first, first + 20 * TOGETHER), TOGETHER)
                start = time.process_time()
                fitting.fit(drawn, SETTINGS[name])
                seconds += time.process_time() - start
            marks = {setting: fitting.marks(test, SETTINGS[setting]) for setting in asked}
            own.append({"trained": name, "seed": seed, "share": share, "steps": fitting.step, "marks": marks})
            own[-1]["seconds"] = seconds
            print(f"{name}, seed {seed}: {fitting.step} steps, {seconds:.0f} s", flush=True)
        rows += own
        with part.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in own)
    return rows


def table(record: dict[str, Any]) -> str:
    """Share of right answers by training and time."""
    rows = record["rows"]
    shares = sorted({row["share"] for row in rows})
    few = TRAINED[1]
    heads = [f"{share * record['budget']:.0f} s" for share in shares]
    lines = [f"| trained with | asked with | {' | '.join(heads)} |", f"|---|---|{'---|' * len(shares)}"]
    for name, setting in (("full", "full"), (few, few), (few, "full")):
        cells = []
        for share in shares:
            own = [row for row in rows if row["trained"] == name and row["share"] == share]
            right = np.mean([np.mean(_flat(row["marks"][setting])) for row in own])
            cells.append(f"{right:.1%} ({np.mean([row['steps'] for row in own]):.0f} steps)")
        words = [text.replace("full", "all tokens") for text in (name, setting)]
        lines.append(f"| {words[0]} | {words[1]} | {' | '.join(cells)} |")
    last = {name: [row for row in rows if row["trained"] == name and row["share"] == 1] for name in TRAINED}
    groups = [number for number, marks in enumerate(last[few][0]["marks"][few]) for _ in marks]
    gaps = [
        np.array(_flat(ahead["marks"][few]), dtype=float) - np.array(_flat(behind["marks"]["full"]), dtype=float)
        for ahead, behind in zip(last[few], last["full"], strict=True)
    ]
    gap = estimate(100 * Resampled(groups).means(np.mean(gaps, axis=0)))
    lines += [
        "",
        f"Right answers to {len(groups)} questions on {len(set(groups))} held-out pictures, mean of "
        f"{len(last[few])} seeds, by seconds of a core. At the end, training at a third and asking at a third is "
        f"{gap.value:+.1f} points [{gap.low:+.1f}, {gap.high:+.1f}] ahead of all tokens (95 % interval over pictures).",
        "",
    ]
    return "\n".join(lines)


def _flat(marks: list[list[bool]]) -> list[bool]:
    return [mark for picture in marks for mark in picture]


def guide(page: str, record: dict[str, Any]) -> str:
    """The guide with the table of a record."""
    return between(page, "training-task", table(record))


def main(arguments: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=160, help="time of a core for each training")
    parser.add_argument("--pictures", type=int, default=60, help="held-out pictures that are asked about")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="write the guide's table from the existing record")
    options = parser.parse_args(arguments)
    if not options.table:
        torch.set_num_threads(1)
        part = options.out.with_suffix(".part.jsonl")
        record = {"commit": commit(), "versions": versions(), "budget": options.seconds}
        record["rows"] = measure(options.seeds, options.seconds, options.pictures, part)
        options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")
        part.unlink()
    record = json.loads(options.out.read_text(encoding="utf-8"))
    print(table(record))
    if options.out == OUT:
        GUIDE.write_text(guide(GUIDE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
