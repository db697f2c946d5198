"""Invariant 9: KV lengths and retention are the schedule's arithmetic, exactly."""

import pytest

import foveate as fv
from tests.invariants.settings import EXAMPLES
from tests.models import DEPTH, FAMILIES, batch, features, generate, is_vision, mixed, tiny


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", EXAMPLES)
def test_lengths_and_retention_are_as_planned(name, family):
    words = mixed(family)
    model, inputs, method = tiny(family), batch(family, words), EXAMPLES[name]
    with fv.drop(model, method) as trace:
        out = generate(model, inputs, new_tokens=4)
    told, longest = trace.latest.per_layer, [0] * DEPTH
    for index, word in enumerate(words):
        one = batch(family, [word])
        text, sizes = int((~is_vision(one["input_ids"])).sum()), in_order(model, one, word)
        frames = [
            size for one in trace.latest.frames[index] for size in one
        ]  # of which tests/engine/test_show.py tells
        plan = method.plan(DEPTH, frames if method.by_frame else sizes) or [
            layer[index] for layer in told
        ]  # None where pictures decide
        stored = [plan[-1] if layer in method.kv_layers(DEPTH) else n for layer, n in enumerate(plan)]
        assert [layer[index] for layer in trace.kv_lengths] == [text + n for n in stored]
        assert trace.tokens[index] == pytest.approx(sum(plan) / DEPTH)
        if sum(sizes):
            assert trace.retention[index] == pytest.approx(sum(plan) / DEPTH / sum(sizes))
        longest = [max(a, text + n) for a, n in zip(longest, stored, strict=True)]
    first = next(layer for layer, counts in enumerate(told) if counts != trace.latest.vision_tokens)
    slots = [layer.keys.shape[-2] for layer in out.past_key_values.layers]
    assert slots[first:] == [n + 3 for n in longest[first:]]  # four tokens are three decode steps
    assert out.past_key_values.get_seq_length() == inputs["input_ids"].shape[1] + 3


def in_order(model, inputs, word):
    """Tokens of each picture and video, as they come in the prompt."""
    makes = {"i": "image", "v": "video"}
    found = {at: iter(features(model, inputs, makes[at])) for at in makes if at in word}
    return [len(next(found[at])) for at in word if at in found]


def test_the_table_of_the_spec():
    """35 + 576 + 20 tokens at the 192 preset: 631, 343, 141, 56, and five more after five tokens."""
    from tests import golden

    case = next(c for c in golden.cases("v2drop") if c.name.endswith("keep50_30_0"))
    with fv.drop(case.model, fv.preset("v2drop/llava-1.5-7b/192")) as trace:
        out = case.model.generate(
            **case.inputs,
            max_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            eos_token_id=None,
            pad_token_id=0,
        )
    expected = [631] * 3 + [343] * 14 + [141] * 5 + [56] * 10
    assert [layer[0] for layer in trace.kv_lengths] == expected
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [n + 5 for n in expected]
