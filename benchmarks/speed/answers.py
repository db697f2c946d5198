"""Time whole answers on a GPU, with CUDA graphs and without: writes benchmarks/speed/answers-NAME.json.

    python benchmarks/speed/answers.py                        # not run yet
    python benchmarks/speed/answers.py --rounds 3 --only llava-1.5-7b:1:32 --print

Models have random weights; decoding is greedy and does not stop early. Each round runs the untouched model (twice, as
the control; with the static cache and compiled steps of transformers; and with CUDA graphs), and V2Drop at a third,
with and without CUDA graphs. The record is written after each case, SHAPE:SAMPLES:TOKENS.
"""

import argparse
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from gpu import DEVICE, Row, _figures, write_cases

import foveate as fv
from foveate.bench.benched import from_shape
from foveate.bench.shapes import shape
from foveate.bench.timing import ratio, rounds
from foveate.engine.session import drop_or_not
from foveate.plain.flags import PromptRequest

CASES = ("llava-1.5-7b:1:32", "llava-1.5-7b:8:32", "llava-1.5-7b:1:128", "llava-1.5-7b:8:128", "qwen2.5-vl-7b:1:32")
STATIC = "full, static cache"
THIRD = fv.V2Drop(retention=1 / 3)
ROWS = {
    "full": Row(),
    "full again": Row(),
    STATIC: Row(),
    "full as a graph": Row(graphs=True),
    "v2drop:1/3": Row(THIRD),
    "v2drop:1/3 as a graph": Row(THIRD, graphs=True),
}
ROUNDS = 10


def answer(model: Any, inputs: dict[str, Any], tokens: int, name: str) -> tuple[float, str]:
    """Milliseconds of an answer, and how its graphs ran."""
    row, more = ROWS[name], {"cache_implementation": "static"} if name == STATIC else {}
    torch.cuda.synchronize()
    began = perf_counter()
    with drop_or_not(model, row.method, row.graphs) as trace:
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **more)
        torch.cuda.synchronize()
    return 1000 * (perf_counter() - began), str(trace.graphs)


def measured(case: str, count: int) -> dict[str, Any]:
    """Measure a case: a shape, a number of samples and a number of tokens."""
    name, batch, tokens = case.split(":")
    benched = from_shape(shape(name), torch.device(DEVICE), torch.bfloat16, "sdpa", PromptRequest(batch=int(batch)))
    model, inputs = benched.model, dict(benched.workload.inputs)
    model.generation_config.eos_token_id = None
    ran = {}
    for row in ROWS:
        for _ in range(3):  # warm-up: compile, or count, record and replay graphs
            _, ran[row] = answer(model, inputs, int(tokens), row)
    calls = {row: partial(answer, model, inputs, int(tokens), row) for row in ROWS}
    times: dict[str, list[float]] = {row: [] for row in ROWS}
    for answers in rounds(calls, count):
        for row, (milliseconds, _) in answers.items():
            times[row].append(milliseconds)
    rows = {}
    for row, series in times.items():
        rows[row] = {
            "ms": sorted(series)[len(series) // 2],
            "times faster than full": _figures(ratio(times["full"], series)),
            "times faster than its static cache": _figures(ratio(times[STATIC], series)),
        }
        if ROWS[row].graphs:
            rows[row]["ran"] = ran[row]
    return {"vision tokens": benched.workload.vision_tokens, "rounds": count, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", metavar="SHAPE:SAMPLES:TOKENS", default=CASES)
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: answers-NAME.json, by the GPU's name")
    parser.add_argument("--print", action="store_true", help="write no file, only to stdout")
    options = parser.parse_args()
    write_cases("answers", options.only, lambda case: measured(case, options.rounds), options)


if __name__ == "__main__":
    main()
