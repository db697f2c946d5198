"""Time the shapes of Qwen2.5-VL-3B, InternVL3-8B and SmolVLM2 from pixels to the first token, with a thinned tower.

    OMP_NUM_THREADS=1 python benchmarks/speed/first.py                           # an hour of one core
    OMP_NUM_THREADS=1 python benchmarks/speed/first.py --shape internvl3-8b --rounds 3

Like `whole.py`, it uses float32, processor time, interleaved rounds and decoder layers that share weights. A third of
the tokens is kept, and Resize has the FLOPs of ThinTower with VidCom2. LLaVA-1.5-7B keeps 5 %, as in a published study.
Writes first-*.json after every round. Rounds in the file count if they are of the same versions, and further ones are
added.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from whole import Shared

import foveate as fv
from foveate.bench.benched import Benched, conditions, from_shape
from foveate.bench.paired import AGAIN, FULL
from foveate.bench.shapes import shape
from foveate.bench.stopwatch import clock_of, time_parts
from foveate.bench.timing import ratio
from foveate.contract.method import Method
from foveate.naming import parse
from foveate.plain.flags import PromptRequest

HERE = Path(__file__).resolve().parent
PARTS = ("tower", "prefill", "ttft")
IMAGES = {"smolvlm2-2.2b": 2, "qwen2.5-vl-3b": 1, "internvl3-8b": 7, "llava-1.5-7b": 1}
PICTURES = {"qwen2.5-vl-3b": {"tokens": 999, "grid": [1, 54, 74]}}
DEPTHS = {"qwen2.5-vl-3b": (16, 18), "internvl3-8b": (8, 9), "llava-1.5-7b": (3, 4)}
"""Reduced (blocks, layers) of shapes that take too long: a half, a third, an eighth. Picking then weighs more."""
OWN = {"qwen2.5-vl-3b": 4, "smolvlm2-2.2b": 4, "internvl3-8b": 4, "llava-1.5-7b": 1}
"""Number of decoder layers with separate weights."""
THIN = "thintower:pick=unlike+vidcom2"
METHODS = (
    "divprune", "vidcom2", THIN, "thintower:pick=maxmin+vidcom2", "thintower:pick=unlike;at=0+vidcom2",
)  # fmt: skip
PUBLISHED = {"llava-1.5-7b": (("vispruner:important_ratio=1", "divprune"), 0.05)}
"""Methods and share of shapes that follow a published study: FasterVLM at 5 %."""


def methods_of(benched: Benched) -> dict[str, Method]:
    """The methods to time, at one share of the tokens, and Resize at the FLOPs of `THIN`."""
    names, share = PUBLISHED.get(benched.name, (METHODS, 1 / 3))
    methods = {name: parse(name).with_budget(retention=share) for name in names}
    if THIN in methods:
        methods["resize"] = resize_like(benched, methods[THIN])
    return methods


def resize_like(benched: Benched, method: Method) -> Method:
    """Resize at the share of tokens whose FLOPs are nearest to those of a method."""
    total = benched.workload.cost(benched.model, method).total_flops or 0
    shares = [percent / 100 for percent in range(20, 80)]
    resized = [parse("resize").with_budget(retention=share) for share in shares]
    return min(resized, key=lambda one: abs((benched.workload.cost(benched.model, one).total_flops or 0) - total))


def measure(name: str, rounds: int) -> None:
    """Time a shape and write its record."""
    of, cpu, path = shape(name), torch.device("cpu"), HERE / f"first-{name}.json"
    config = shallower(of.config, DEPTHS.get(name))
    sharing = Shared(of.name, of.of, config, PICTURES.get(name, of.image), own=OWN[name])
    benched = from_shape(sharing, cpu, torch.float32, "auto", PromptRequest(images=IMAGES[name]))
    methods: dict[str, Method | None] = {FULL: None, **methods_of(benched), AGAIN: None}
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"seconds": []}
    seconds = before["seconds"]
    record = conditions(benched, cpu, new_tokens=1, clock="cpu", seed=0, command=shlex.join(["python", *sys.argv]))
    if seconds and before["versions"] != record["versions"]:
        raise SystemExit(f"{path} has rounds of other versions ({before['versions']}). Move it aside to measure anew.")
    record |= {"layers_with_own_weights": OWN[name], "depths": DEPTHS.get(name)}
    time_once(benched, list(methods.values())[-2])  # warm-up
    while len(seconds) < rounds:
        order = Random(len(seconds)).sample(list(methods), len(methods))
        times = {row: time_once(benched, methods[row]) for row in order}
        seconds.append({row: times[row] for row in methods})
        record |= {"rounds": len(seconds), "first": rows_of(benched, methods, seconds), "seconds": seconds}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: round {len(seconds)}", flush=True)


def shallower(config: Mapping[str, Any], depths: tuple[int, int] | None) -> dict[str, Any]:
    """A config with this many (blocks, layers). None leaves it as it is."""
    if depths is None:
        return dict(config)
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    vision["depth" if "depth" in vision else "num_hidden_layers"], text["num_hidden_layers"] = depths
    if "fullatt_block_indexes" in vision:
        vision["fullatt_block_indexes"] = [block for block in vision["fullatt_block_indexes"] if block < depths[0]]
    return {**config, "vision_config": vision, "text_config": text}


def time_once(benched: Benched, method: Method | None) -> dict[str, float]:
    """Processor seconds of each part of one call."""
    with nullcontext() if method is None else fv.drop(benched.model, method):
        return time_parts(benched.model, benched.workload.inputs, 1, clock_of("cpu"))


def rows_of(
    benched: Benched, methods: Mapping[str, Method | None], seconds: list[dict[str, dict[str, float]]]
) -> list[dict[str, Any]]:
    """A row for each method: median seconds of each part, and ratios to the untouched model in the same round."""
    whole, rows = benched.workload.cost(benched.model), []
    for name, method in methods.items():
        cost = benched.workload.cost(benched.model, method)
        row: dict[str, Any] = {
            "name": name,
            "setting": None if method is None else method.to_dict(),
            "retention": cost.retention,
            "tower_flops": cost.tower_flops / whole.tower_flops,
            "prefill_flops": cost.prefill_flops / whole.prefill_flops,
            "ttft_flops": cost.total_flops / whole.total_flops,
        }
        for part in PARTS:
            times, full = ([one[of][part] for one in seconds] for of in (name, FULL))
            beside = ratio(times, full)
            row |= {part: median(times), f"{part}_ratio": beside.median}
            row |= {f"{part}_ratio_low": beside.low, f"{part}_ratio_high": beside.high}
        rows.append(row)
    return rows


def main() -> None:
    """Measure one shape after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=list(IMAGES), choices=list(IMAGES), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each shape, including those in its record")
    options = parser.parse_args()
    for name in options.shape:
        measure(name, options.rounds)


if __name__ == "__main__":
    main()
