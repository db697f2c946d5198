"""Where prompts of one picture and of several samples and pictures wait for the device.

For a process of its own, since torch learns of the device for good.
"""

from functools import cache

import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.contract import Cut, Hidden, ImageStage, LayerStage, TowerAttention
from foveate.methods.dycoke import DyCoke
from foveate.methods.read import Read
from tests.bench import far
from tests.bench.counting import waits_in
from tests.bench.counts import METHODS
from tests.models import FAMILIES, TINY, batch, made_of

FEW, MANY = ("tit",), ("titit", "titit", "tit")
PROMPTS = {"few": (FEW, 1), "many": (MANY, 1), "later": (FEW, 2)}
"""The samples, and how many turns there are."""
SHOWN = ("gemma4", "internvl", "llava", "llava_next", "mistral3", "qwen2_5_vl", "smolvlm")
METHODS = {
    "v2drop": METHODS["v2drop"],
    "finalkv": METHODS["v2drop"] + fv.FinalKV(),
    "visiondrop": METHODS["visiondrop"],
    "mustdrop": fv.MustDrop(pruning_layers=(1, 3), retention=0.63, merge_window=2, merge_threshold=-0.1),
}


class Masks(fv.Method):
    """Keeps what is longer than the mean: only the device knows how many tokens that is."""

    name = "masks"

    def stages(self, shape):
        image = ImageStage(reads=(TowerAttention(by=shape.payer),), choose=lambda view, _: longer(view.features))
        return (
            image,
            *(LayerStage(layer, reads=(Hidden(),), choose=lambda view, _: longer(view.hidden)) for layer in (1, 3)),
        )


def longer(rows):
    lengths = rows.float().norm(dim=-1)
    return Cut.keep(lengths >= lengths.mean())


METHODS |= {"masks": Masks(), "prumerge": fv.PruMerge()}
RUNS = [
    (family, name, tuple(PROMPTS)[(row + column) % len(PROMPTS)])
    for row, family in enumerate(family for family in SHOWN if family in FAMILIES)
    for column, name in enumerate(METHODS)
]
"""Every two of family, method and prompt meet."""


@cache
def model_of(family):
    return far.move(made_of(family, TINY[family].config()))


def waits(family, name, prompt):
    """Where a run waits."""
    words, turns = PROMPTS[prompt]
    with fv.drop(model_of(family), METHODS[name]):
        return _of(model_of(family), batch(family, words), turns)


def _of(model, inputs, turns):
    """Of the last of so many turns with the same new text and picture."""
    arguments = {name: far.FarTensor(value) for name, value in inputs.items()}
    mask, cache = inputs["attention_mask"], None
    for turn in range(turns):
        arguments["attention_mask"] = far.FarTensor(torch.cat([mask] * (turn + 1), dim=1))
        passed = {}
        if cache is not None:
            ids = torch.arange(mask.shape[1] * turn, mask.shape[1] * (turn + 1))[None].expand(len(mask), -1)
            ids = ids.expand(3, -1, -1) if TINY[model.config.model_type].mrope else ids
            passed = {**with_cache(cache), "position_ids": far.FarTensor(ids.contiguous())}
        steps = []
        passed |= arguments
        seen = waits_in(lambda passed=passed, steps=steps: steps.append(model(**passed)), far.Far())
        cache = cache_in(steps[0])
    return seen


READING = (Read(keep=0.3), DyCoke(k=0.0, p=0.7))


def of_reading(method):
    """Where a prompt waits behind which steps read less, and three steps."""
    inputs, steps, seen, cache = batch("llava", ["titit", "tit", "ttt"]), [], [], None
    mask, model = inputs["attention_mask"], model_of("llava")
    with fv.drop(model, method):
        for token in (7, 8, 9, 10):
            arguments = {name: far.FarTensor(value.contiguous()) for name, value in inputs.items()}
            arguments |= {**with_cache(cache), "use_cache": True}
            seen.append(waits_in(lambda arguments=arguments: steps.append(model(**arguments)), far.Far()))
            cache, mask = cache_in(steps[0]), torch.cat((mask, mask.new_ones(3, 1)), dim=1)
            ids = mask.cumsum(1)[:, -1:] - 1
            inputs = {"input_ids": torch.full((3, 1), token), "attention_mask": mask, "position_ids": ids}
    return seen
