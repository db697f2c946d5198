"""The bare way: with every extension blocked, a cut with kept positions is right."""

from contextlib import suppress

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from foveate.engine import extensions
from foveate.engine.extension import Extension
from tests import oracle
from tests.ablation import NAMES, without
from tests.invariants.references import BANNED
from tests.invariants.test_restore import state
from tests.models import batch, generate, mixed, tiny

FAMILIES = ("llava", "llava_onevision", "qwen2_5_vl", "gemma3", "qwen3_5")
"""One size of picture, tiles and newlines, M-RoPE, windows, and layers with a state."""
METHOD = fv.Random(layers=(3,), keep=(0.4,))


@pytest.fixture(autouse=True)
def bare():
    with without(NAMES):
        yield


class Spy(Extension):
    """Notes the vision tokens that are left of each sample at the end of each prompt."""

    def __init__(self):
        self.kept = []

    def end(self, forward, cache):
        self.kept.append([tokens.tolist() for tokens in forward.table.tokens])


def test_nothing_of_an_extension_can_be_imported():
    for name in NAMES:
        with pytest.raises(ImportError, match="blocked"):
            __import__(f"{extensions.__name__}.{name}")
    with fv.drop(tiny("llava"), METHOD) as trace:
        tiny("llava")(**batch("llava", ["tit"]))
    assert not trace.history


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_is_the_untouched_model(family):
    model, inputs = tiny(family), batch(family, mixed(family))
    with torch.no_grad():
        plain = model(**inputs, use_cache=True)
        with fv.drop(model, fv.Random(layers=(3,), keep=(1.0,))):
            kept = model(**inputs, use_cache=True)
    assert torch.equal(plain.logits, kept.logits)
    for one, other in zip(cache_in(plain).layers, cache_in(kept).layers, strict=True):
        assert type(one) is type(other)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_the_recompute(family):
    model, inputs, spy = tiny(family), batch(family, ["titt"]), Spy()
    with fv.drop(model, METHOD, extensions=[spy]):
        out = generate(model, inputs)
    cuts = {3: torch.tensor(spy.kept[0][0])}
    logits, _ = oracle.recomputed(model, inputs, out, cuts, BANNED)
    torch.testing.assert_close(torch.cat(out.logits), logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ragged_batch_is_its_samples_run_alone(family):
    model, words, spy = tiny(family), ("titt", "titit", "tit"), Spy()
    with fv.drop(model, METHOD, extensions=[spy]):
        together = generate(model, batch(family, words))
        for index, word in enumerate(words):
            alone = generate(model, batch(family, [word]))
            assert spy.kept[-1][0] == spy.kept[0][index]
            for one, other in zip(alone.logits, together.logits, strict=True):
                torch.testing.assert_close(one[0], other[index], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_as_before(family):
    model, inputs = tiny(family), batch(family, ["titt"])
    with torch.no_grad():
        before, plain = state(model), model(**inputs).logits
        with suppress(KeyError), fv.drop(model, METHOD):
            generate(model, inputs)
            raise KeyError
        assert state(model) == before
        assert torch.equal(model(**inputs).logits, plain)
