"""Measure the cost of a method's scores in a large batch. Writes benchmarks/speed/batch.json.

    python benchmarks/speed/batch.py --rounds 10                              # cpu-small at batch 32, minutes
    python benchmarks/speed/batch.py --layers 32 --out benchmarks/speed/batch-deep.json  # as deep as real models

Compares a prefill with the method with one with random dropping at the same tokens in every layer. Both run in random
order in each round. The control is random dropping run twice. Prints the median ratio of the rounds with a 95 %
bootstrap interval, and the scores' share of the FLOPs to the first token.
"""

import argparse
import json
import platform
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import foveate as fv
from foveate.bench.shapes import NamedShape, shape
from foveate.bench.timing import ratio, rounds
from foveate.bench.workload import Workload, synthetic
from foveate.methods.random import same_schedule
from foveate.naming import method_of as at_budget
from foveate.plain.flags import PromptRequest
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent


def deeper(named: NamedShape, layers: int | None) -> NamedShape:
    """The shape with another number of decoder layers."""
    if layers is None:
        return named
    text = {**named.config["text_config"], "num_hidden_layers": layers}
    return NamedShape(named.name, named.of, {**named.config, "text_config": text}, named.image, named.frame)


def prefill(model: Any, workload: Workload, method: fv.Method) -> tuple[float, list[float]]:
    """Seconds of one prefill, and the vision tokens of the first sample in each layer."""
    with fv.drop(model, method) as trace, torch.no_grad():
        begun = perf_counter()
        model(**workload.inputs, logits_to_keep=1)
        seconds = perf_counter() - begun
    return seconds, [counts[0] for counts in trace.latest.per_layer]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds and return the record."""
    named = deeper(shape(options.shape), options.layers)
    model = named.build(torch.device("cpu"), torch.float32)
    workload = synthetic(named, PromptRequest(batch=options.batch), torch.device("cpu"))
    depth = model.config.get_text_config().num_hidden_layers
    chosen = at_budget(options.method, options.budget)
    _, tokens = prefill(model, workload, chosen)
    plain = same_schedule(chosen, [int(count) for count in tokens], workload.vision_tokens)
    methods = {"method": chosen, "random": plain, "random again": plain}
    runs = {name: partial(prefill, model, workload, method) for name, method in methods.items()}
    times = []
    for answers in rounds(runs, options.rounds, options.seed):
        times.append({name: seconds for name, (seconds, _) in answers.items()})
        print(f"round {len(times)}: " + ", ".join(f"{name} {times[-1][name]:.2f} s" for name in runs), flush=True)
    seconds = {name: [each[name] for each in times] for name in runs}
    over, control = (ratio(seconds[name], seconds["random"]) for name in ("method", "random again"))
    own, plain = (workload.cost(model, each, tokens=tokens) for each in (chosen, None))
    return {
        "shape": named.name,
        "layers": depth,
        "batch": options.batch,
        "method": str(chosen),
        "tokens": tokens,
        "share of prefill FLOPs": 1 - plain.prefill_flops / own.prefill_flops,
        "over random": [over.median, over.low, over.high],
        "control": [control.median, control.low, control.high],
        "rounds": times,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": versions(),
        "commit": commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="cpu-small", metavar="NAME", help="default: cpu-small")
    parser.add_argument("--layers", type=int, metavar="N", help="decoder layers (default: the shape's)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="samples (default: 32)")
    parser.add_argument("--budget", type=float, default=128, metavar="TOKENS", help="default: 128")
    parser.add_argument("--method", default="visiondrop", metavar="NAME", help="default: visiondrop")
    parser.add_argument("--rounds", type=int, default=8, metavar="N", help="default: 8")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the order (default: 0)")
    parser.add_argument("--out", type=Path, default=HERE / "batch.json", metavar="FILE")
    options = parser.parse_args()
    record = measure(options)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name in ("over random", "control"):
        middle, low, high = record[name]
        print(f"{name}: {middle:.3f} [{low:.3f}, {high:.3f}]")
    print(f"what it reads ahead of layers is {record['share of prefill FLOPs']:.1%} of the prefill's FLOPs")


if __name__ == "__main__":
    main()
