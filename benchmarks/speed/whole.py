"""Time the shapes of LLaVA-1.5-7B, Qwen2.5-VL-3B and SmolVLM2 from pixels to the last token, a third kept.

    OMP_NUM_THREADS=1 python benchmarks/speed/whole.py                           # hours on one core
    OMP_NUM_THREADS=1 python benchmarks/speed/whole.py --shape smolvlm2-2.2b

Times the parts of `foveate bench` in float32 and in processor time, so that the machine may be busy. Eight decoder
layers have separate weights and the others share these in turn, so that 7B fit into 12 GiB. This does not change the
time, because the weights of a layer are many times larger than a core's caches. Writes whole-*.json after every round
from the second on.
"""

import argparse
import copy
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, Progress

from foveate.bench.benched import budgeted_methods, conditions, from_shape, named_methods
from foveate.bench.paired import PairedRun
from foveate.bench.results import noisy_parts, rows_of
from foveate.bench.shapes import NamedShape, shape
from foveate.bench.stopwatch import clock_of
from foveate.plain.flags import PromptRequest
from foveate.registry import family_for

HERE = Path(__file__).resolve().parent
IMAGES = {"smolvlm2-2.2b": 2, "llava-1.5-7b": 1, "qwen2.5-vl-3b": 1}
PICTURES = {"qwen2.5-vl-3b": {"tokens": 576, "grid": [1, 48, 48]}}
"""Smaller pictures for shapes whose usual picture takes half an hour per round."""
OWN = 8
"""Number of decoder layers with separate weights."""
NEW_TOKENS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Shared(NamedShape):
    """A shape whose layers share the weights of the first few.

    Attributes:
        own: Number of layers with separate weights.
    """

    own: int = OWN

    def build(self, device: torch.device, dtype: torch.dtype, attention: str = "auto", seed: int = 0) -> Any:
        """Build the model with all its layers."""
        text = {**self.config["text_config"], "num_hidden_layers": self.own}
        small = NamedShape(self.name, self.of, {**self.config, "text_config": text})
        model = small.build(device, dtype, attention, seed)
        whole = self.make_config().get_text_config()
        layers = family_for(model).text.layers
        for index in range(self.own, whole.num_hidden_layers):
            weights = {id(weight): weight for weight in layers[index % self.own].parameters()}
            layers.append(copy.deepcopy(layers[index % self.own], weights))
            layers[index].self_attn.layer_idx = index
        text = model.config.get_text_config()
        text.num_hidden_layers = whole.num_hidden_layers
        if getattr(whole, "layer_types", None):
            text.layer_types = whole.layer_types
        return model


def measure(name: str, pairs: int) -> None:
    """Time a shape and write its record."""
    of, cpu = shape(name), torch.device("cpu")
    sharing = Shared(of.name, of.of, of.config, PICTURES.get(name, of.image), of.frame)
    benched = from_shape(sharing, cpu, torch.float32, "auto", PromptRequest(images=IMAGES[name]))
    methods, _ = budgeted_methods(named_methods(["v2drop"]), benched.model, benched.workload.vision_tokens)
    command = shlex.join(["python", *sys.argv])
    record = conditions(benched, cpu, new_tokens=NEW_TOKENS, clock="cpu", seed=0, command=command)
    record["layers_with_own_weights"] = OWN
    run = PairedRun(benched.model, benched.workload, NEW_TOKENS, clock_of("cpu"))
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task(f"{name}: memory", total=pairs + 1)
        run.prepare(methods)
        progress.update(task, description=f"{name}: rounds")
        for finished in run.run(pairs, after=lambda: progress.advance(task)):
            if finished > 1:
                rows = rows_of(run)
                record |= {"rounds": finished, "noisy": noisy_parts(rows), "no_bare": run.obstacle, "rows": rows}
                text = json.dumps(record, indent=1) + "\n"
                (HERE / f"whole-{name}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Measure one shape after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=list(IMAGES), choices=list(IMAGES), metavar="NAME")
    parser.add_argument("--pairs", type=int, default=6)
    options = parser.parse_args()
    for name in options.shape:
        measure(name, options.pairs)


if __name__ == "__main__":
    main()
