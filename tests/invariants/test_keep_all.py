"""Invariant 1: keeping everything is the untouched model, bit for bit."""

from functools import cache

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from tests.invariants.settings import KEEP_ALLS, KINDS, families_of, kernel_of, serves
from tests.models import DEPTH, TINY, batch, cached, generate, mixed, tiny


@cache
def untouched(family, kernel):
    """What a model answers to its mixed batch, which all methods must not change."""
    return generate(tiny(family, kernel), batch(family, mixed(family)), new_tokens=3)


@pytest.mark.parametrize(
    ("name", "family"), [(n, f) for n in KEEP_ALLS for f in families_of(n) if serves(f, KEEP_ALLS[n])]
)
def test_keep_all_is_the_untouched_model(name, family):
    words, kernel = mixed(family), kernel_of(family, list(KEEP_ALLS).index(name))
    model, inputs = tiny(family, kernel), batch(family, words)
    plain = untouched(family, kernel)
    with fv.drop(model, KEEP_ALLS[name]) as trace:
        kept = generate(model, inputs, new_tokens=3)
    assert torch.equal(kept.sequences, plain.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, plain.logits, strict=True))
    assert trace.retention == [1.0] * len(words)
    for ours, theirs in zip(cache_in(kept).layers, cache_in(plain).layers, strict=True):
        assert type(ours) is type(theirs)
        assert all(torch.equal(a, b) for a, b in zip(cached(ours), cached(theirs), strict=True))


@pytest.mark.parametrize("family", KINDS)
def test_a_text_prompt_of_two_thousand_tokens_is_untouched(family):
    model, inputs = tiny(family), batch(family, ["t" * 667])
    plain = generate(model, inputs, new_tokens=2)
    with fv.drop(model, fv.V2Drop(layers=(1, 2), keep=(0.1, 0.1))) as trace:
        same = generate(model, inputs, new_tokens=2)
    assert inputs["input_ids"].shape[1] > 2000
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))
    assert trace.vision_tokens == [0]
    assert trace.stages == []
    assert trace.kv_lengths[-1] == [TINY[family].held(DEPTH - 1, inputs["input_ids"].shape[1])]
