"""How the cost of dropping grows with vision tokens: writes benchmarks/speed/linear.json and linear.png.

    python benchmarks/speed/linear.py                                     # cpu-tiny, 576 to 32,256 tokens, minutes
    python benchmarks/speed/linear.py --shape llava-1.5-7b --device cuda  # on an accelerator

One prompt of 1 to 56 pictures, half of the tokens kept from layer 1 on and a quarter from the middle. By torch's
profiler: the time around the decoder layers, which is all that dropping does (scoring, gathering, writing back, masks)
and the layers' residuals, and the whole way from the pixels to the first token. What MustDrop computes while a layer
attends is booked as that layer's attention.
"""

import argparse
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import foveate as fv
from foveate._versions import commit, versions
from foveate.ask.generation import generate
from foveate.bench.shapes import shape
from foveate.bench.workload import PromptRequest, synthetic
from foveate.core.patching import Patcher
from foveate.registry import family_for

HERE = Path(__file__).resolve().parent
IMAGES = (1, 2, 4, 8, 16, 32, 56)


def methods(depth: int) -> dict[str, Any]:
    """Settings that keep the same shares at any number of tokens."""
    cuts = (1, depth // 2)
    return {
        "untouched": None,
        "random": fv.Random(layers=cuts, keep=(0.5, 0.5)),
        "v2drop": fv.V2Drop(layers=cuts, keep=(0.5, 0.5)),
        "visiondrop": fv.VisionDrop(
            dominant=0, contextual=0, layer_list=cuts, image_token_list=((250, 38), (125, 19)), positions="keep"
        ),
        "mustdrop": fv.MustDrop(pruning_layers=(0, depth // 2 - 1), retention=0.5, merge_windows=False, kv=False),
    }


def profiled(model: Any, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Seconds from the pixels to the first token: "around" the layers' own modules, and the "whole".

    To be called inside the dropping context. Time is the accelerator's where there is one, else the CPU's.
    """
    cuda = model.device.type == "cuda"
    generate(model, inputs, 1)  # warm-up
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with labelled(model), profile(activities=activities, acc_events=True) as profiler, record_function("whole"):
        generate(model, inputs, 1)
    seconds = {"whole": 0.0, "layers": 0.0, "modules": 0.0}
    for event in profiler.key_averages():
        if event.key in seconds:
            spent = event.device_time_total if cuda else event.cpu_time_total
            # An accelerator has a second entry of this name, without children.
            seconds[event.key] = max(seconds[event.key], spent / 1e6)
    return {"around": seconds["layers"] - seconds["modules"], "whole": seconds["whole"]}


@contextmanager
def labelled(model: Any) -> Iterator[None]:
    """Name the decoder layers and the modules in them for the profiler."""
    with Patcher() as patches:
        for layer in family_for(model).layers:
            label(patches, layer, "layers")
            for module in layer.children():
                label(patches, module, "modules")
        yield


def label(patches: Patcher, module: nn.Module, name: str) -> None:
    """Put a label around a module's forward; from outside, whatever else stands around it."""
    open_labels: list[Any] = []

    def enter(*_: Any) -> None:
        open_labels.append(record_function(name))
        open_labels[-1].__enter__()

    def leave(*_: Any) -> None:
        open_labels.pop().__exit__(None, None, None)

    patches.hook(module, "before", enter, prepend=True)
    patches.hook(module, "after", leave)


def measure(name: str, device: str, images: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Seconds around the layers and in all, for each method and number of pictures; the least of the runs."""
    place = torch.device(device)
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    model = shape(name).build(place, dtype)
    rows: dict[str, dict[str, list[float]]] = {}
    sizes = []
    for count in images:
        size = PromptRequest(text_tokens=2 * count + 40, images=count)
        workload = synthetic(shape(name), size, place, dtype)
        sizes.append(workload.vision_tokens)
        for method, setting in methods(model.config.get_text_config().num_hidden_layers).items():
            with nullcontext() if setting is None else fv.drop(model, setting):
                found = [profiled(model, workload.inputs) for _ in range(runs)]
            row = rows.setdefault(method, {"around": [], "whole": []})
            for part, values in row.items():
                values.append(min(seconds[part] for seconds in found))
            print(
                f"{workload.vision_tokens} tokens, {method}: {row['around'][-1]:.4f} of {row['whole'][-1]:.4f} s",
                flush=True,
            )
    return {
        "shape": name,
        "weights": "random",
        "device": torch.cuda.get_device_name() if place.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "runs": runs,
        "versions": versions(),
        "commit": commit(),
        "vision_tokens": sizes,
        "seconds": rows,
    }


def draw(record: dict[str, Any], path: Path) -> None:
    """Both on double logarithmic axes, beside a line of slope 1."""
    figure = Figure(figsize=(11, 4.6), dpi=150, layout="constrained")
    panels = {"around": "around the decoder layers: dropping, residuals", "whole": "pixels to the first token"}
    axes, sizes = figure.subplots(1, len(panels)), record["vision_tokens"]
    for axis, (kind, label) in zip(axes, panels.items(), strict=True):
        for method, row in record["seconds"].items():
            axis.loglog(sizes, [1000 * value for value in row[kind]], marker="o", markersize=4, label=method)
        first = 1000 * min(row[kind][0] for row in record["seconds"].values())
        axis.loglog(sizes, [first * size / sizes[0] for size in sizes], color="black", linestyle=":", label="linear")
        axis.set_xlabel("vision tokens")
        axis.set_ylabel(f"ms {label}")
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=9)
    figure.suptitle(f"{record['shape']} (random weights), {record['device']}, {record['dtype']}", fontsize=11)
    figure.savefig(path)


def main() -> None:
    """Measure, and write record and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="cpu-tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "linear.json")
    given = parser.parse_args()
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr when it begins and ends
    record = measure(given.shape, given.device, tuple(given.images), given.runs)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, given.out.with_suffix(".png"))
    steps = list(pairwise(zip(record["vision_tokens"], range(len(record["vision_tokens"])), strict=True)))
    for method, row in record["seconds"].items():
        slopes = [math.log(row["around"][j] / row["around"][i]) / math.log(b / a) for (a, i), (b, j) in steps]
        print(f"{method}: time grows with tokens to the power of {', '.join(f'{slope:.2f}' for slope in slopes)}")


if __name__ == "__main__":
    main()
