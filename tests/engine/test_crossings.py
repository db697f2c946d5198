"""Between the hooks around the decoder nothing crosses between host and device, so that a CUDA graph can hold it."""

from types import MethodType

import pytest
import torch
from transformers import DynamicCache

import foveate as fv
from foveate._transformers import with_cache
from foveate.methods.hawk import HAWK
from foveate.methods.read import Read
from foveate.registry import family_for
from tests.invariants.settings import examples
from tests.models import FAMILIES, batch, tiny
from tests.recorder import Recorder, Sides

RAGGED = ("titit", "tit", "tittt")
LINEAGES = ("llava", "llava_next", "llava_onevision", "vipllava", "qwen2_vl", "qwen2_5_vl")
V2DROP = fv.V2Drop(layers=(2, 4), keep=(0.5, 0.3))
METHODS = {**examples()[0], "read-0": Read(keep=0.3), "hawk-weights": HAWK(keep=0.4, weights=(0.1, 0.4, 0.2, 0.3))}
ONE_OF_EACH = {name.split("-")[0]: name for name in METHODS}.values()
NUMBERS_DECIDE = ("ivcprune-1", "mustdrop-0", "mustdrop-1", "mustdrop-3")
"""A mask says which tokens stay, and the device is asked how many these are."""
OF_TRANSFORMERS = {
    "gemma3": "cache_utils.py",
    "gemma4": "cache_utils.py",
    "qwen3_vl": "modeling_qwen3_vl.py",
    "qwen3_vl_moe": "modeling_qwen3_vl_moe.py",
}
"""The files in which transformers crosses: it sends a window's width, and deepstack's mask is an index."""


def prefill(family, method, words, call, seed=0, logits_to_keep=1):
    """A prefill whose decoder's forward is called by `call(forward, arguments)`."""
    model, inputs = tiny(family), batch(family, words, seed)
    text = family_for(model).text
    if len(words) == 1:
        inputs.pop("attention_mask")  # of a batch without padding the session hands none on

    def forward(text, **arguments):
        return call(lambda **arguments: type(text).forward(text, **arguments), arguments)

    text.forward = MethodType(forward, text)
    try:
        with Sides(), torch.no_grad(), fv.drop(model, method):
            cache = DynamicCache(config=model.config)
            model(**inputs, **with_cache(cache), use_cache=True, logits_to_keep=logits_to_keep)
    finally:
        del text.forward
    return cache


def crossings(family, method, words=("tit",), logits_to_keep=1):
    tapes = []

    def call(forward, arguments):
        output = []
        tapes.append(Recorder(strict=False))
        tapes[-1].record(lambda: (output.append(forward(**arguments)), ())[1])
        return output[0]

    prefill(family, method, words, call, logits_to_keep=logits_to_keep)
    (tape,) = tapes
    return tape.crossings


@pytest.mark.parametrize("name", [name for name in METHODS if name not in NUMBERS_DECIDE])
def test_no_method_crosses(name):
    assert crossings("llava", METHODS[name]) == []


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if name not in NUMBERS_DECIDE])
def test_no_method_crosses_in_a_ragged_batch(name):
    assert crossings("qwen2_5_vl", METHODS[name], RAGGED) == []


@pytest.mark.parametrize("name", NUMBERS_DECIDE)
def test_where_numbers_decide_they_are_read_and_nothing_else_crosses(name):
    listed = crossings("llava", METHODS[name])
    assert listed
    assert all(crossing.startswith("read: tolist at cutting.py") for crossing in listed)


@pytest.mark.parametrize("family", FAMILIES)
def test_in_no_family_does_more_cross_than_transformers_lets(family):
    listed = crossings(family, V2DROP)
    assert bool(listed) == (family in OF_TRANSFORMERS)
    assert all(f"at {OF_TRANSFORMERS[family]}" in crossing for crossing in listed)


@pytest.mark.parametrize("family", [family for family in LINEAGES if family in FAMILIES])
@pytest.mark.parametrize("logits", [0, 1])
def test_no_ragged_batch_crosses(family, logits):
    assert crossings(family, V2DROP, RAGGED, logits) == []
