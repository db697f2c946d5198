"""A copy of a cache is written apart from the original, and all tensors of a cache are counted."""

import pytest
import torch
from transformers.cache_utils import Cache, StaticLayer

from foveate._transformers import cache_in
from foveate.engine.copies import compact, copy_of, nbytes
from foveate.errors import UnsupportedError
from tests.models import batch, cached, tiny


def test_a_layer_that_is_written_in_place_gets_memory_of_its_own():
    rows = torch.ones(1, 2, 3, 4)
    cache = Cache(layers=[StaticLayer(max_cache_len=8)])
    cache.update(rows, rows, 0)
    copied = copy_of(cache)
    copied.update(2 * rows, 2 * rows, 0)
    assert int(cache.layers[0].keys.max()) == 1
    assert int(copied.layers[0].keys.max()) == 2
    with pytest.raises(UnsupportedError, match="StaticLayer"):
        compact(cache)


def test_states_count_among_the_bytes_of_a_cache():
    with torch.no_grad():
        cache = cache_in(tiny("qwen3_5")(**batch("qwen3_5", ["tt"])))
    assert nbytes(cache) == sum(tensor.nbytes for layer in cache.layers for tensor in cached(layer))
