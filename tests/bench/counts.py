"""What opening a context, a prompt, a decode step and closing do, counted on tiny models on a device that is none.

    python -m tests.bench.counts            # writes tests/bench/counts.json: after a change that is meant
    python -m tests.bench.counts --print    # the same to stdout

In a process of its own, since torch learns of the device for good.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import torch
import transformers

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.methods.divprune import DivPrune
from foveate.registry import family_for
from tests.bench import far
from tests.bench.counting import count
from tests.models import TINY, batch, made_of

COUNTS = Path(__file__).with_name("counts.json")
PROMPTS = {"llava": ("tit",), "llava, ragged": ("titit", "tit"), "qwen2_vl": ("tit",)}
METHODS = {
    "untouched": None,
    "keep-all": fv.Uniform(layers=(1,), keep=(1.0,)),
    "random": fv.Random(layers=(1, 3), keep=(0.6, 0.5)),
    "v2drop": fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5)),
    "fastv": fv.FastV(layers=(2,), keep=(0.5,)),
    "divprune": DivPrune(retention=0.5),
    "visiondrop": fv.VisionDrop(
        dominant=14, contextual=3, layer_list=(2, 4), image_token_list=((10, 2), (6, 1)), reference=25
    ),
    "mustdrop": fv.MustDrop(pruning_layers=(1, 3), retention=0.63, merge_threshold=0.3),
}


def versions():
    return {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}


def counts():
    """For each prompt and method: what a context's opening, the prefill, the decode step behind it and closing do."""
    totals = {}
    for prompt, words in PROMPTS.items():
        family = prompt.split(",")[0]
        model = far.move(made_of(family, TINY[family].config()))
        inputs = batch(family, words)
        totals[prompt] = {name: counted(model, inputs, method) for name, method in METHODS.items()}
    return totals


def counted(model, inputs, method):
    """Of one method, by part."""
    layers, passed = family_for(model).layers, {}
    arguments = {name: far.FarTensor(value) for name, value in inputs.items()}
    mask = torch.cat((inputs["attention_mask"], torch.ones(len(inputs["attention_mask"]), 1, dtype=torch.int64)), dim=1)
    ids = mask.cumsum(1)[:, -1:] - 1
    step = {"input_ids": torch.full_like(ids, 5), "attention_mask": mask}
    step["position_ids"] = ids.expand(3, -1, -1) if TINY[model.config.model_type].mrope else ids
    step = {name: far.FarTensor(value) for name, value in step.items()}

    def enter():
        passed["context"] = ExitStack()
        if method is not None:
            passed["context"].enter_context(fv.drop(model, method))

    def prefill():
        passed["output"] = model(**arguments, use_cache=True, logits_to_keep=1)

    def decode():
        model(**passed["step"], use_cache=True, logits_to_keep=1)

    parts = {"open": enter, "prefill": prefill, "decode": decode, "close": lambda: passed["context"].close()}
    for counting in (_once, count):  # what is remembered from call to call is there at the second
        counted = {}
        for name, part in parts.items():
            if name == "decode":
                passed["step"] = step | with_cache(cache_in(passed["output"]))
            counted[name] = counting(part, layers, far.Far())
    return {name: counts.to_dict() for name, counts in counted.items()}


def _once(call, _, mode):
    with mode, torch.no_grad():
        call()


def main(arguments):
    far.register()
    text = json.dumps({"versions": versions(), "counts": counts()}, indent=1) + "\n"
    if "--print" in arguments:
        print(text)
    else:
        COUNTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
