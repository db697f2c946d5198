"""Time the sizes of real models on a GPU, from pixels to the first token: writes benchmarks/speed/gpu-NAME.json.

    python benchmarks/speed/gpu.py                            # four minutes of a large GPU
    python benchmarks/speed/gpu.py --rounds 6 --only llava-1.5-7b:1 --print
    python benchmarks/speed/gpu.py --graphs                   # writes graphs-NAME.json; not run yet

Models have random weights, which do not change speed at a fixed schedule. Each round runs every method and the
untouched model, twice as the control. A call is timed with and without opening and closing its context. The time until
the device is done is recorded, and the host's time until all kernels are launched. If both are nearly equal, kernel
launches are the bottleneck, and fewer tokens save no time.

With `--graphs`, the untouched model and V2Drop also run with CUDA graphs in the same rounds. Their rows say how the
calls ran, and which share of the timed calls was replayed. The record is written after each case, the most important
first.
"""

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import foveate as fv
from foveate.bench.benched import from_shape
from foveate.bench.shapes import shape
from foveate.bench.timing import Ratio, ratio, rounds
from foveate.engine.session import drop_or_not
from foveate.naming import method_of as at_budget
from foveate.plain.flags import PromptRequest
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
DEVICE = "cuda"
CASES = ("llava-1.5-7b:1", "llava-1.5-7b:8", "qwen2.5-vl-7b:1", "qwen2.5-vl-7b:8")
GRAPHED_CASES = ("llava-1.5-7b:1", "llava-1.5-7b:8", "qwen2.5-vl-7b:1", "qwen3-vl-8b:1")
GRAPHED = ("v2drop:1/3",)
"""Methods that also run with CUDA graphs."""
METHODS = (
    "v2drop:1/3", "random:1/3", "v2drop:1/6", "fastv:1/3",
    "divprune:1/3", "divprune:1/9", "scope:1/3", "visiondrop:1/3",
)  # fmt: skip
ROUNDS = 20
Times = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A method, or None for the untouched model; and True to run with CUDA graphs."""

    method: fv.Method | None = None
    graphs: bool = False


def call(model: Any, inputs: dict[str, Any], row: Row) -> Times:
    """Milliseconds of one prefill: in total, inside the open context, and the host's share of the latter.

    "replayed" is 1 if tower and decoder were replayed, else 0.
    """
    torch.cuda.synchronize()
    began = perf_counter()
    with drop_or_not(model, row.method, row.graphs) as trace, torch.no_grad():
        entered = perf_counter()
        model(**inputs, logits_to_keep=1)
        launched = perf_counter()
        torch.cuda.synchronize()
        done = perf_counter()
    closed = perf_counter()
    seconds = {"all": closed - began, "inside": done - entered, "host": launched - entered}
    replayed = trace.graphs is not None and trace.graphs.decoder.latest == trace.graphs.tower.latest == "replayed"
    return {name: 1000 * value for name, value in seconds.items()} | {"replayed": float(replayed)}


def recorded(model: Any, inputs: dict[str, Any], method: fv.Method | None) -> str:
    """Call three times, to count, record and replay the graphs. Returns how the third call ran."""
    for _ in range(3):
        with drop_or_not(model, method, cuda_graphs=True) as trace, torch.no_grad():
            model(**inputs, logits_to_keep=1)
    return str(trace.graphs)


def rows_of(graphs: bool) -> dict[str, Row]:
    """The rows of each round, by name."""
    chosen = {"full": Row(), "full again": Row()}
    if graphs:
        chosen["full as a graph"] = Row(graphs=True)
    for text in GRAPHED if graphs else METHODS:
        method, _, share = text.partition(":")
        over, under = map(int, share.split("/"))
        chosen[text] = Row(at_budget(method, retention=over / under))
        if graphs:
            chosen[f"{text} as a graph"] = Row(chosen[text].method, graphs=True)
    return chosen


def measured(case: str, count: int, graphs: bool = False) -> dict[str, Any]:
    """Measure a case: a shape and a number of samples."""
    name, batch = case.split(":")
    benched = from_shape(shape(name), torch.device(DEVICE), torch.bfloat16, "sdpa", PromptRequest(batch=int(batch)))
    model, inputs = benched.model, dict(benched.workload.inputs)
    chosen = rows_of(graphs)
    ran = {name: recorded(model, inputs, row.method) for name, row in chosen.items() if row.graphs}
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
        if name in ran:
            over = ratio([one["inside"] for one in times["full as a graph"]], [one["inside"] for one in series])
            share = sum(one["replayed"] for one in series) / len(series)
            rows[name] |= {"than full as a graph, times faster": _figures(over), "replayed": share, "ran": ran[name]}
    tokens = benched.workload.vision_tokens
    return {"vision tokens": tokens, "tower ms": sorted(tower)[2], "rounds": count, "methods": rows}


def _tower(model: Any, inputs: dict[str, Any]) -> float:
    """Milliseconds of the vision tower and projector."""
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


def write_cases(kind: str, cases: Sequence[str], measure: Callable[[str], Any], options: argparse.Namespace) -> None:
    """Measure the cases and write the record of this GPU after each."""
    chip = torch.cuda.get_device_name()
    record: dict[str, Any] = {"gpu": chip, "dtype": "bfloat16", "kernel": "sdpa", "versions": versions()}
    record |= {"commit": commit(), "cases": {}}
    out = options.out or HERE / f"{kind}-{chip.split()[-1].lower()}.json"
    for case in cases:
        record["cases"][case] = measure(case)
        print(json.dumps({case: record["cases"][case]}), flush=True)
        if not options.print:
            out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", metavar="SHAPE:SAMPLES")
    parser.add_argument(
        "--graphs", action="store_true", help="time the untouched model and V2Drop, with and without CUDA graphs"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: gpu-NAME.json or graphs-NAME.json, by the GPU's name"
    )
    parser.add_argument("--print", action="store_true", help="write no file, only to stdout")
    options = parser.parse_args()
    kind = "graphs" if options.graphs else "gpu"
    cases = options.only or (GRAPHED_CASES if options.graphs else CASES)
    write_cases(kind, cases, lambda case: measured(case, options.rounds, options.graphs), options)


if __name__ == "__main__":
    main()
