"""What trying a setting on several pictures as one batch brings: writes benchmarks/tuning/batching.json and prints it.

    python benchmarks/tuning/batching.py        # some minutes on quiet cores

A search tries every setting on five pictures at once. That is timed here against one picture after the other, in one
process, interleaved. Single pictures are timed twice; the second times are the control.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import foveate as fv
from foveate._versions import versions
from foveate._writing import publish
from foveate.bench.timing import ratio, rounds
from foveate.contract.method import Method
from foveate.contract.naming import parse
from foveate.eval.held_out import questions
from foveate.tune.forcing import Target, answered, outcomes
from foveate.tune.parts import About, grouped
from foveate.tune.trials import FEWEST

OUT = Path(__file__).with_suffix(".json")
SEED, ROUNDS = 900, 10
SETTINGS = {
    "V2Drop at 64 tokens": "v2drop:layers=1,2,17;keep=0.35,0.286,0.25;metric=cosine",
    "V2Drop at 192 tokens": "v2drop:layers=3,11;keep=0.34,0.6;metric=cosine",
    "FastV at 64 tokens": "fastv:layers=1,17,25;keep=0.13,0.413,0.0968",
}


def compared(
    model: Any, pictures: Sequence[About], wanted: Sequence[list[Target]], method: Method, number: int
) -> dict[str, Any]:
    """Time of all pictures as one batch over that of one after the other."""
    singly = partial(_seconds, model, method, [[about] for about in pictures], [[one] for one in wanted])
    together = partial(_seconds, model, method, [pictures], [wanted])
    times = list(rounds({"singly": singly, "again": singly, "together": together}, number))
    seconds = {name: [each[name] for each in times] for name in times[0]}
    return {
        "together": ratio(seconds["together"], seconds["singly"]).to_dict(),
        "control": ratio(seconds["again"], seconds["singly"]).to_dict(),
    }


def _seconds(model: Any, method: Method, batches: Sequence[Any], wanted: Sequence[Any]) -> float:
    """Seconds that a method takes on all batches."""
    start = time.perf_counter()
    for batch, answers in zip(batches, wanted, strict=True):
        outcomes(model, batch, answers, method)
    return time.perf_counter() - start


def main(given: list[str] | None = None) -> dict[str, Any]:
    """Measure with one thread and with all, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(given)
    vlm = fv.load()
    asked = questions(fv.embedded.TASKS, 12 * FEWEST, (SEED,))
    pictures = grouped(vlm, [(one.media(), one.text) for one in asked])[:FEWEST]
    wanted = [answered(vlm.model, about, 16) for about in pictures]
    threads = torch.get_num_threads()
    rows = []
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        for name, text in SETTINGS.items():
            found = compared(vlm.model, pictures, wanted, parse(text), options.rounds)
            rows.append({"setting": name, "threads": number, **found})
    torch.set_num_threads(threads)
    record = {
        "pictures": len(pictures),
        "questions": sum(len(about.samples) for about in pictures),
        "cores": os.cpu_count(),
        "versions": versions(),
        "rows": rows,
    }
    text = json.dumps(record, indent=1) + "\n"
    publish(options.out, lambda part: part.write_text(text, encoding="utf-8"), force=True)
    print(text, end="")
    return record


if __name__ == "__main__":
    main()
