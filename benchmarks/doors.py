"""Rows a second of `ask_many`, `foveate batch` and `foveate eval --samples`, in processor time, on the embedded model.

    python benchmarks/doors.py --questions 66

It uses nothing but public doors, so it runs on an older checkout too: `PYTHONPATH=OLD/src python benchmarks/doors.py`.
"""

import argparse
import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import foveate as fv
from foveate.cli import main as command
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene

SPLIT = "held-out"
METHODS = (None, "v2drop", "fastv")
COMPARED = ("v2drop", "divprune", "fastv", "vidcom2", "random", "resize")


def rows_about(pictures: int, questions: int, folder: Path) -> list[dict[str, str]]:
    """So many questions about each of so many drawn pictures."""
    rows = []
    for number in range(pictures):
        drawn = scene(SPLIT, number)
        path = folder / f"{number}.png"
        Image.fromarray(drawn.image).save(path)
        for one in one_per_task(drawn, SPLIT, number)[:questions]:
            rows.append({"image": str(path), "question": one.question, "label": one.answer})
    return rows


def rate(rows: int, work: Callable[[], object]) -> float:
    """Rows a second of processor time."""
    begun = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        work()
    return rows / (time.process_time() - begun)


def measured(rows: list[dict[str, str]], folder: Path) -> dict[str, float]:
    """Rows a second of each door."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--questions", type=int, default=6, help="about each picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_about(options.pictures, options.questions, Path(folder))
        found = measured(rows, Path(folder))
    print(json.dumps({"rows": len(rows), **{name: round(value, 2) for name, value in found.items()}}, indent=1))


if __name__ == "__main__":
    main()
