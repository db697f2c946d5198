"""Time `ask_many`, `foveate batch` and `foveate eval --samples` on the embedded model, in rows per processor second.

    python benchmarks/doors.py --questions 66
    python benchmarks/doors.py --beside OLD/src --rounds 5 --out benchmarks/doors.json

It uses only the public interface, so it also runs on an older checkout. With --beside, both checkouts run in turn, each
in its own process, and each figure is a ratio to the older checkout: median and range of the rounds. A second run of
the older checkout in each round is the control.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import transformers
from PIL import Image

import foveate as fv
from foveate.cli import main as command
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene

SPLIT = "held-out"
METHODS = (None, "v2drop", "fastv")
COMPARED = ("v2drop", "divprune", "fastv", "vidcom2", "random", "resize")


def rows_about(pictures: int, questions: int, folder: Path) -> list[dict[str, str]]:
    """Rows with up to `questions` questions about each of `pictures` drawn pictures."""
    rows = []
    for number in range(pictures):
        drawn = scene(SPLIT, number)
        path = folder / f"{number}.png"
        Image.fromarray(drawn.image).save(path)
        for one in one_per_task(drawn, SPLIT, number)[:questions]:
            rows.append({"image": str(path), "question": one.question, "label": one.answer})
    return rows


def rate(rows: int, work: Callable[[], object]) -> float:
    """Rows per second of processor time."""
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return rows / (time.process_time() - begun)


def measured(rows: list[dict[str, str]], folder: Path) -> dict[str, float]:
    """Rows per second by `ask_many`, `foveate batch` and `foveate eval`."""
    vlm = fv.load("embedded", device="cpu")
    pairs = [(row["image"], row["question"]) for row in rows]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {}
    for method in METHODS:
        name = method or "full model"
        keywords = {} if method is None else {"method": method, "retention": 1 / 3}
        ask = partial(vlm.ask_many, pairs, max_new_tokens=8, **keywords)
        found[f"ask_many, {name}"] = rate(len(rows), lambda ask=ask: list(ask()))
        dropping = ("--untouched",) if method is None else ("--method", method, "--retention", "1/3")
        words = ("batch", str(file), str(folder / name), *dropping, "--max-new-tokens", "8", "--device", "cpu")
        found[f"batch, {name}"] = rate(len(rows), partial(command, words))
    compared = [word for method in COMPARED for word in ("--method", method)]
    kept = ("--cache", str(folder / "kept"), "--workers", "1", "--device", "cpu")
    words = ("eval", "--samples", str(file), *compared, "--retention", "1/3", "--no-baselines", "--draws", "1", *kept)
    found["eval of six methods"] = rate(len(rows), partial(command, words))
    return found


def commit_of(source: str) -> str:
    """The commit of a checkout."""
    command = ["git", "-C", source, "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def beside(old: str, rounds: int, words: list[str]) -> dict[str, dict[str, list[float]]]:
    """Ratios of rows per second, new to old checkout and old to itself: median, lowest, highest."""
    new, ratios = str(Path(fv.__file__).parents[1]), {"new": {}, "control": {}}
    for number in range(rounds):
        order = [("new", new), ("old", old), ("control", old)]
        runs = {}
        for name, source in order if number % 2 else reversed(order):
            path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
            command = [sys.executable, __file__, *words]
            done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, stdout=subprocess.PIPE)
            runs[name] = json.loads(done.stdout)
            del runs[name]["rows"]
        for name, of in ratios.items():
            for door, value in runs[name].items():
                of.setdefault(door, []).append(value / runs["old"][door])
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        name: {door: [round(one, 3) for one in (median(all_), min(all_), max(all_))] for door, all_ in of.items()}
        for name, of in ratios.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--questions", type=int, default=6, help="questions about each picture")
    parser.add_argument("--beside", metavar="SRC", help="the `src` folder of an older checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the ratios to this file")
    options = parser.parse_args()
    if options.beside:
        words = ["--pictures", str(options.pictures), "--questions", str(options.questions)]
        versions = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "beside": commit_of(options.beside),
        }
        found = versions | beside(options.beside, options.rounds, words)
        text = json.dumps(found, indent=1)
        if options.out:
            options.out.write_text(text + "\n")
        print(text)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_about(options.pictures, options.questions, Path(folder))
        found = measured(rows, Path(folder))
    print(json.dumps({"rows": len(rows), **{name: round(value, 2) for name, value in found.items()}}, indent=1))


if __name__ == "__main__":
    main()
