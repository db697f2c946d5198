"""Bytes of a KV cache: what dropping saved, and nothing that the model saves by itself."""

import functools
import itertools

import pytest

import foveate as fv
from foveate._transformers import cache_in
from foveate.ask.answer import kv_bytes
from tests.models import FAMILIES, TINY, batch, cached, generate, tiny

NEW = 6
LONG = "t" * 4 + "i" + "t" * 4
"""A prompt of one picture, longer than any window of the tiny models."""
METHODS = {
    "v2drop": fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3)),
    "early": fv.Uniform(layers=(0,), keep=(0.2,)),
    "kv": fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3)) + fv.FinalKV(),
}
BATCHES = {"alone": (LONG,), "ragged": (LONG, "tit", "ttttt")}


def cache_of(family, words, method=None):
    """The cache after an answer of six tokens."""
    model, inputs = tiny(family), batch(family, words)
    if method is None:
        return cache_in(generate(model, inputs, NEW))
    with fv.drop(model, method):
        return cache_in(generate(model, inputs, NEW))


def counted(cache):
    """Bytes of all keys and values, one by one."""
    tensors = [tensor for layer in cache.layers if hasattr(layer, "keys") for tensor in cached(layer)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.fixture(scope="module")
def untouched():
    """Bytes of the untouched model's cache, by family and prompts."""

    @functools.cache
    def of(family, name):
        cache = cache_of(family, BATCHES[name])
        held = counted(cache)
        assert kv_bytes(cache) == (held,) * 2
        return held

    return of


@pytest.mark.parametrize(
    ("family", "method"),
    [*zip(FAMILIES, itertools.cycle(METHODS), strict=False), *(("llava", method) for method in METHODS)],
)
def test_whole_is_the_untouched_models_to_the_byte(family, method, untouched):
    for name, words in BATCHES.items():
        cache = cache_of(family, words, METHODS[method])
        held, whole = kv_bytes(cache)
        assert whole == untouched(family, name)
        assert held == counted(cache)
        # In a batch each layer holds as many slots as its longest sample, here the one of text alone at the least.
        assert held < whole


@pytest.mark.parametrize("family", [family for family in FAMILIES if any(map(TINY[family].window, range(6)))])
def test_what_a_window_saves_is_no_merit_of_a_method(family):
    """A prompt so long that the windows let go of every vision token: only layers that see all hold fewer."""
    window = max(TINY[family].window(layer) or 0 for layer in range(6))
    words = ("ti" + "t" * (window // 3 + 1),)
    whole = cache_of(family, words)
    dropped = cache_of(family, words, METHODS["early"])
    held, expected = kv_bytes(dropped)
    assert expected == counted(whole)
    saved = 0
    for layer, (full, cut) in enumerate(zip(whole.layers, dropped.layers, strict=True)):
        if TINY[family].window(layer) is not None:
            assert cut.keys.nbytes == full.keys.nbytes
        saved += full.keys.nbytes - cut.keys.nbytes + full.values.nbytes - cut.values.nbytes
    assert expected - held == saved > 0


def test_layers_that_carry_a_state_count_nothing():
    cache = cache_of("qwen3_5", (LONG,))
    with_keys = [layer for layer in cache.layers if hasattr(layer, "keys")]
    assert len(with_keys) == 4
    assert len(cache.layers) == 6
    assert kv_bytes(cache)[0] == sum(layer.keys.nbytes + layer.values.nbytes for layer in with_keys)
