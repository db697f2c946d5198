"""What one quarter of an hour on a GPU proves of CUDA graphs, in the order of what it is worth.

    python benchmarks/speed/gpu.py                       # writes benchmarks/speed/graphs-NAME.json after each part
    python benchmarks/speed/gpu.py --only equal timed    # some parts
    python benchmarks/speed/gpu.py --methods             # four minutes: writes gpu-NAME.json, without graphs

On a CPU the same command says what it would do. Models have random weights, which do not change speed at a fixed
schedule. If answers with and without graphs differ on tiny models, nothing is timed. A part that does not fit into the
time left is not begun.

With `--methods`, each round runs every method and the untouched model, twice as the control. A call is timed with and
without opening and closing its context. The time until the device is done is recorded, and the host's time until all
kernels are launched. If both are nearly equal, kernel launches are the bottleneck, and fewer tokens save no time.
"""

import argparse
import copy
import gc
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
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
from foveate.engine.doors import drop_or_not
from foveate.naming import method_of as at_budget
from foveate.plain.flags import PromptRequest
from foveate.runs.versions import commit, versions
from foveate.testing.models import FAMILIES, tiny_model

HERE = Path(__file__).resolve().parent
DEVICE = "cuda"
CASES = ("llava-1.5-7b:1", "llava-1.5-7b:8", "qwen2.5-vl-7b:1", "qwen2.5-vl-7b:8")
LLAVA, QWEN = CASES[0], CASES[2]
METHODS = (
    "v2drop:1/3", "random:1/3", "v2drop:1/6", "fastv:1/3",
    "divprune:1/3", "divprune:1/9", "scope:1/3", "visiondrop:1/3",
)  # fmt: skip
THIRD = fv.V2Drop(retention=1 / 3)
STATIC = "full, static cache"
TOKENS = 32
ROUNDS = 20
Times = dict[str, float]


class UnequalError(SystemExit):
    """Answers with graphs differ."""


@dataclass(frozen=True)
class Row:
    """A method, or None for the untouched model; True to run with CUDA graphs; and more settings of `generate`."""

    method: fv.Method | None = None
    graphs: bool = False
    cache: str | None = None


ROWS = {
    "full": Row(),
    "full again": Row(),
    "full as a graph": Row(graphs=True),
    "v2drop:1/3": Row(THIRD),
    "v2drop:1/3 as a graph": Row(THIRD, graphs=True),
}


# -- calls ------------------------------------------------------------------------------------------------------


def built(case: str) -> tuple[Any, dict[str, Any], int]:
    """A model of a named shape, its prompt, and its number of vision tokens. Cases are SHAPE:SAMPLES."""
    name, batch = case.split(":")
    benched = from_shape(shape(name), torch.device(DEVICE), torch.bfloat16, "sdpa", PromptRequest(batch=int(batch)))
    benched.model.generation_config.eos_token_id = None
    return benched.model, dict(benched.workload.inputs), benched.workload.vision_tokens


def prefill(model: Any, inputs: dict[str, Any], row: Row) -> tuple[Times, str]:
    """Milliseconds of one prefill: in total, inside the open context, and the host's share; and how graphs ran."""
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
    return {name: 1000 * value for name, value in seconds.items()} | {"replayed": float(replayed)}, str(trace.graphs)


def tower(model: Any, inputs: dict[str, Any], row: Row) -> tuple[Times, str]:
    """Milliseconds of the vision tower and projector, and how graphs ran."""
    names = ("pixel_values", "image_grid_thw", "image_sizes")
    pictures = {name: inputs[name] for name in names if name in inputs}
    with drop_or_not(model, row.method, row.graphs) as trace, torch.no_grad():
        torch.cuda.synchronize()
        began = perf_counter()
        model.model.get_image_features(**pictures)
        launched = perf_counter()
        torch.cuda.synchronize()
        seconds = {"inside": perf_counter() - began, "host": launched - began}
    replayed = trace.graphs is not None and trace.graphs.tower.latest == "replayed"
    return {name: 1000 * value for name, value in seconds.items()} | {"replayed": float(replayed)}, str(trace.graphs)


def whole(model: Any, inputs: dict[str, Any], row: Row, tokens: int = TOKENS) -> tuple[Times, str]:
    """Milliseconds of an answer, and how its graphs ran."""
    more = {} if row.cache is None else {"cache_implementation": row.cache}
    torch.cuda.synchronize()
    began = perf_counter()
    with drop_or_not(model, row.method, row.graphs) as trace:
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **more)
        torch.cuda.synchronize()
    graphs = trace.graphs
    replayed = graphs is not None and graphs.decoder.latest == graphs.steps.latest == "replayed"
    return {"inside": 1000 * (perf_counter() - began), "replayed": float(replayed)}, str(graphs)


def timed(case: str, call: Callable[..., tuple[Times, str]], count: int, rows: dict[str, Row]) -> dict[str, Any]:
    """Time rows in paired rounds. A row with graphs that were not always replayed has its reason, and no ratio."""
    model, inputs, tokens = built(case)
    for row in rows.values():
        for _ in range(3):  # count, record and replay graphs; or compile
            call(model, inputs, row)
    runs = {name: partial(call, model, inputs, row) for name, row in rows.items()}
    series: dict[str, list[Times]] = {name: [] for name in rows}
    ran = {}
    for answers in rounds(runs, count):
        for name, (times, ran[name]) in answers.items():
            series[name].append(times)
    result = {}
    for name, row in rows.items():
        cells: dict[str, Any] = {"ms": median([one["inside"] for one in series[name]])}
        if "host" in series[name][0]:
            cells["host ms"] = median([one["host"] for one in series[name]])
        share = sum(one["replayed"] for one in series[name]) / count
        if row.graphs:
            cells |= {"ran": ran[name], "replayed": share}
        if not row.graphs or share == 1:
            for other in (base for base in ("full", "full as a graph", STATIC) if base in rows and base != name):
                if rows[other].graphs and min(one["replayed"] for one in series[other]) < 1:
                    continue
                pair = ([one["inside"] for one in times] for times in (series[other], series[name]))
                cells[f"times faster than {other}"] = figures(ratio(*pair))
        result[name] = cells
    idle = {name: idle_share(runs[name]) for name in rows if call is prefill and "again" not in name}
    return {"vision tokens": tokens, "rounds": count, "rows": result} | ({"idle share": idle} if idle else {})


def idle_share(run: Callable[[], Any]) -> float:
    """The share of the time between its first and its last kernel in which the GPU does nothing, from one profile."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        run()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return round(1 - busy / (end - spans[0][0]), 3)


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def figures(one: Ratio) -> list[float]:
    """The median and its interval."""
    return [round(value, 3) for value in (one.median, one.low, one.high)]


# -- parts ------------------------------------------------------------------------------------------------------


def said(model: Any, inputs: dict[str, Any], method: fv.Method | None, graphs: bool, times: int) -> dict[str, Any]:
    """The last of several answers: ids, logits, kept tokens, and how graphs ran."""
    with drop_or_not(model, method, graphs) as trace:
        for _ in range(times):
            answer = model.generate(
                **inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
    kept = [tokens.tolist() for stage in trace.stages for tokens in stage.kept]
    return {"ids": answer.sequences, "logits": torch.stack(answer.logits), "kept": kept, "ran": trace.graphs}


def compared(model: Any, inputs: dict[str, Any], method: fv.Method | None) -> dict[str, Any]:
    """How far an answer from replays is from one without graphs."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        plain, graph = (said(model, inputs, method, graphs, 1 + 2 * graphs) for graphs in (False, True))
    ran = graph["ran"]
    return {
        "replayed": ran.decoder.latest == ran.steps.latest == "replayed",
        "same ids": torch.equal(plain["ids"], graph["ids"]),
        "same kept tokens": plain["kept"] == graph["kept"],
        "logits differ by": float((plain["logits"][0] - graph["logits"][0]).abs().max()),
        "of": float(plain["logits"][0].abs().max()),
        "ran": str(ran),
        "reasons": [str(one.message) for one in told],
    }


def tiny() -> dict[str, Any]:
    """Equal answers on tiny models, float32 and then bfloat16."""
    result: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for family in FAMILIES:
            one = tiny_model(family)
            model = copy.deepcopy(one.model).to(DEVICE, dtype)
            inputs = {
                name: value.to(DEVICE, dtype if value.is_floating_point() else None)
                for name, value in one.inputs("titt").items()
            }
            for name in ("v2drop", "divprune", "none"):
                method = None if name == "none" else at_budget(name, retention=1 / 3)
                result[f"{family}, {name}, {str(dtype).partition('.')[2]}"] = compared(model, inputs, method)
    exact = [row for name, row in result.items() if name.endswith(" float32")]
    result["equal"] = all(row["replayed"] and row["same ids"] and row["same kept tokens"] for row in exact)
    return result


def equal() -> dict[str, Any]:
    """LLaVA-7B: tokens of answers with and without graphs, and memory."""
    model, inputs, _ = built(LLAVA)
    before = torch.cuda.memory_reserved()
    result: dict[str, Any] = {name: compared(model, inputs, row.method) for name, row in ROWS.items() if row.graphs}
    result["bytes that graphs reserve"] = torch.cuda.memory_reserved() - before
    fv.free_graphs(model)
    result["bytes left when they are freed"] = torch.cuda.memory_reserved() - before
    return result


def bench() -> dict[str, Any]:
    """`foveate bench --batch 8`, as users run it."""
    out = HERE / f"bench-{_chip()}.json"
    command = [
        sys.executable, "-c", "from foveate.cli import main; raise SystemExit(main())", "bench", "--model",
        LLAVA.partition(":")[0], "--device", DEVICE, "--batch", "8", "--method", "v2drop", "--retention", "1/3",
        "--new-tokens", "8", "--pairs", "6", "--cuda-graphs", "--out", str(out),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"code": ran.returncode, "said": ran.stdout[-4000:], "errors": ran.stderr[-2000:]}


@dataclass(frozen=True)
class Part:
    """A part of the quarter of an hour: seconds that it may take, and its call."""

    seconds: int
    run: Callable[[], dict[str, Any]]
    about: str


def parts(count: int) -> dict[str, Part]:
    """All parts, the most important first."""
    static = {STATIC: Row(cache="static"), **ROWS}
    return {
        "tiny": Part(60, tiny, "equal answers of tiny models, in float32 and bfloat16; stops here if they differ"),
        "bench": Part(120, bench, "foveate bench --batch 8 --cuda-graphs on LLaVA-7B's shape"),
        "equal": Part(60, equal, "LLaVA-7B's shape: tokens with and without graphs, and their memory"),
        "timed": Part(60, partial(timed, LLAVA, prefill, count, ROWS), "LLaVA-7B's prefill, with the GPU's idle share"),
        "tower": Part(
            60,
            partial(timed, QWEN, tower, count, {name: row for name, row in ROWS.items() if row.method is None}),
            "Qwen2.5-VL-7B's vision tower",
        ),
        "answers": Part(120, partial(timed, LLAVA, whole, count // 2, ROWS), f"LLaVA-7B's answers of {TOKENS} tokens"),
        "static": Part(180, partial(timed, LLAVA, whole, count // 4, static), "the same with a compiled static cache"),
    }


def quarter(options: argparse.Namespace) -> None:
    """Run the parts in order, and write the record after each."""
    began, record = perf_counter(), _record()
    for name, part in parts(options.rounds).items():
        left = options.seconds - (perf_counter() - began)
        if options.only and name not in options.only:
            continue
        if part.seconds > left:
            record[name] = {"not begun": f"it may take {part.seconds} s, and {left:.0f} s are left"}
        else:
            start = perf_counter()
            try:
                record[name] = part.run()
            except Exception as error:  # later parts may still tell something
                record[name] = {"failed": f"{type(error).__name__}: {error}"}
            record[name]["seconds"] = round(perf_counter() - start, 1)
        _write(record, options, "graphs", name)
        gc.collect()
        torch.cuda.empty_cache()
        if name == "tiny" and not record[name].get("equal"):
            raise UnequalError("Answers with graphs differ on tiny models, or were not replayed: see above.")


# -- methods ----------------------------------------------------------------------------------------------------


def measured(case: str, count: int) -> dict[str, Any]:
    """Measure the prefill of every method without graphs."""
    model, inputs, tokens = built(case)
    chosen = {"full": Row(), "full again": Row()}
    for text in METHODS:
        method, _, share = text.partition(":")
        over, under = map(int, share.split("/"))
        chosen[text] = Row(at_budget(method, retention=over / under))
    runs = {name: partial(prefill, model, inputs, row) for name, row in chosen.items()}
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for answers in rounds(runs, count):
        for name, (answer, _) in answers.items():
            times[name].append(answer)
    towers = [tower(model, inputs, Row())[0]["inside"] for _ in range(5)]
    full = {part: [one[part] for one in times["full"]] for part in ("all", "inside", "host")}
    rows = {}
    for name, series in times.items():
        faster = {part: ratio(full[part], [one[part] for one in series]) for part in ("all", "inside")}
        rows[name] = {
            "ms": median([one["inside"] for one in series]),
            "host ms": median([one["host"] for one in series]),
            "opened for the call, times faster": figures(faster["all"]),
            "in an open context, times faster": figures(faster["inside"]),
            "host time": figures(ratio([one["host"] for one in series], full["host"])),
        }
    return {"vision tokens": tokens, "tower ms": median(towers), "rounds": count, "methods": rows}


# -- records ----------------------------------------------------------------------------------------------------


def _chip() -> str:
    return torch.cuda.get_device_name().split()[-1].lower()


def _record() -> dict[str, Any]:
    about = {"gpu": torch.cuda.get_device_name(), "dtype": "bfloat16", "kernel": "sdpa", "versions": versions()}
    return {**about, "commit": commit()}


def _write(record: dict[str, Any], options: argparse.Namespace, kind: str, name: str) -> None:
    """Print what is new, and write all."""
    print(json.dumps({name: record[name]}, indent=1), flush=True)
    if not options.print:
        out = options.out or HERE / f"{kind}-{_chip()}.json"
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="+", metavar="PART", help="parts; with --methods: SHAPE:SAMPLES")
    parser.add_argument("--seconds", type=int, default=840, help="of the GPU (default: %(default)s)")
    parser.add_argument("--methods", action="store_true", help="time prefills of methods without graphs instead")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="default: graphs-NAME.json or gpu-NAME.json, by the GPU's name"
    )
    parser.add_argument("--print", action="store_true", help="write no file, only to stdout")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("Here is no CUDA device. On one, this runs:")
        for name, part in parts(options.rounds).items():
            print(f"  {name:8} {part.about} (at most {part.seconds} s)")
    elif options.methods:
        record = _record() | {"cases": {}}
        for case in options.only or CASES:
            record["cases"][case] = measured(case, options.rounds)
            _write(record, options, "gpu", "cases")
            gc.collect()
            torch.cuda.empty_cache()
    else:
        quarter(options)


if __name__ == "__main__":
    main()
