"""Time the sizes of real models on a GPU, from pixels to the first token: writes benchmarks/speed/gpu-NAME.json.

    python benchmarks/speed/gpu.py                            # four minutes of a large GPU
    python benchmarks/speed/gpu.py --rounds 6 --only llava-1.5-7b:1 --print

Random weights, which change no speed at a fixed schedule. In each round every method runs beside the untouched model,
which is there twice as the control: with the context opened and closed around the call, and inside an open one. Beside
the time until the device is done stands the host's, until everything is launched: where the two are near each other,
launches are what takes the time, and fewer tokens save none of it.
"""

import argparse
import gc
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import foveate as fv
from foveate.bench.benched import from_shape
from foveate.bench.shapes import shape
from foveate.bench.timing import Ratio, ratio, rounds
from foveate.bench.workload import PromptRequest
from foveate.engine.session import drop_or_not
from foveate.naming import method_of as at_budget
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
CASES = ("llava-1.5-7b:1", "llava-1.5-7b:8", "qwen2.5-vl-7b:1", "qwen2.5-vl-7b:8")
METHODS = (
    "v2drop:1/3", "random:1/3", "v2drop:1/6", "fastv:1/3",
    "divprune:1/3", "divprune:1/9", "scope:1/3", "visiondrop:1/3",
)  # fmt: skip
ROUNDS = 20
Times = dict[str, float]


def call(model: Any, inputs: dict[str, Any], method: fv.Method | None) -> Times:
    """Milliseconds of one prefill: all, what lies inside the open context, and the host's share of that."""
    torch.cuda.synchronize()
    began = perf_counter()
    with drop_or_not(model, method), torch.no_grad():
        entered = perf_counter()
        model(**inputs, logits_to_keep=1)
        launched = perf_counter()
        torch.cuda.synchronize()
        done = perf_counter()
    closed = perf_counter()
    seconds = {"all": closed - began, "inside": done - entered, "host": launched - entered}
    return {name: 1000 * value for name, value in seconds.items()}


def measured(case: str, count: int) -> dict[str, Any]:
    """Figures of a shape and a number of samples."""
    name, batch = case.split(":")
    benched = from_shape(shape(name), torch.device("cuda"), torch.bfloat16, "sdpa", PromptRequest(batch=int(batch)))
    model, inputs = benched.model, dict(benched.workload.inputs)
    chosen: dict[str, fv.Method | None] = {"full": None, "full again": None}
    for text in METHODS:
        method, _, share = text.partition(":")
        over, under = map(int, share.split("/"))
        chosen[text] = at_budget(method, retention=over / under)
    runs: dict[str, Callable[[], Times]] = {name: partial(call, model, inputs, one) for name, one in chosen.items()}
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for answers in rounds(runs, count):
        for name, answer in answers.items():
            times[name].append(answer)
    tower = [_tower(model, inputs) for _ in range(5)]
    full = {part: [one[part] for one in times["full"]] for part in ("all", "inside", "host")}
    rows = {}
    for name, series in times.items():
        faster = {part: ratio(full[part], [one[part] for one in series]) for part in ("all", "inside")}
        host = ratio([one["host"] for one in series], full["host"])
        rows[name] = {
            "ms": sorted(one["inside"] for one in series)[len(series) // 2],
            "host ms": sorted(one["host"] for one in series)[len(series) // 2],
            "opened for the call, times faster": _figures(faster["all"]),
            "in an open context, times faster": _figures(faster["inside"]),
            "host time": _figures(host),
        }
    tokens = benched.workload.vision_tokens
    return {"vision tokens": tokens, "tower ms": sorted(tower)[2], "rounds": count, "methods": rows}


def _tower(model: Any, inputs: dict[str, Any]) -> float:
    """Milliseconds of the pictures alone."""
    core = model.model
    given = {name: inputs[name] for name in ("pixel_values", "image_grid_thw", "image_sizes") if name in inputs}
    torch.cuda.synchronize()
    began = perf_counter()
    with torch.no_grad():
        core.get_image_features(**given)
    torch.cuda.synchronize()
    return 1000 * (perf_counter() - began)


def _figures(one: Ratio) -> list[float]:
    return [round(value, 3) for value in (one.median, one.low, one.high)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", default=[*CASES], metavar="SHAPE:SAMPLES")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: gpu-NAME.json, by the GPU's name")
    parser.add_argument("--print", action="store_true", help="write nothing but to stdout")
    options = parser.parse_args()
    chip = torch.cuda.get_device_name()
    record: dict[str, Any] = {"gpu": chip, "dtype": "bfloat16", "kernel": "sdpa", "versions": versions()}
    record |= {"commit": commit(), "cases": {}}
    out = options.out or HERE / f"gpu-{chip.split()[-1].lower()}.json"
    for case in options.only:
        record["cases"][case] = measured(case, options.rounds)
        print(json.dumps({case: record["cases"][case]}), flush=True)
        if not options.print:
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
