"""Invariant 9: KV lengths and retention are the schedule's arithmetic, exactly."""

import itertools

import pytest

import foveate as fv
from foveate._transformers import cache_in
from tests.invariants import facts
from tests.invariants.settings import EXAMPLES, PAIRS, part
from tests.models import DEPTH, TINY, always_kept, batch, features, generate, is_vision, mixed, slots, tiny


@pytest.mark.parametrize(("name", "family"), part(PAIRS, 1, of=2))
def test_lengths_and_retention_are_as_planned(name, family):
    words = mixed(family)
    model, inputs, method = tiny(family), batch(family, words), EXAMPLES[name]
    with fv.drop(model, method) as trace:
        out = generate(model, inputs, new_tokens=4)
    held = TINY[family].held
    told, longest = trace.latest.per_layer, [0] * DEPTH
    for index, word in enumerate(words):
        one = batch(family, [word])
        text, sizes = int((~is_vision(one["input_ids"])).sum()), in_order(model, one, word)
        always = [always_kept(family, size) for size in sizes]
        fixed, groups = sum(map(len, always)), [size - len(few) for size, few in zip(sizes, always, strict=True)]
        if facts.by_frame(method):
            frames = zip(trace.latest.frames[index], always, strict=True)
            groups = [size for each, few in frames for size in without(each, few)]
        plan = method.plan(DEPTH, groups)  # None where pictures decide
        plan = [layer[index] for layer in told] if plan is None else [count + fixed for count in plan]
        stored = [plan[-1] if layer in facts.kv_layers(method) else n for layer, n in enumerate(plan)]
        for layer, (lengths, n) in enumerate(zip(trace.kv_lengths, stored, strict=True)):
            most = held(layer, text + n)
            if layer in facts.kv_layers(method) and 0 < held(layer, 10_000) < 10_000:
                assert lengths[index] <= most  # a window has let go of some that the cut would have left
            else:
                assert lengths[index] == most
        assert trace.tokens[index] == pytest.approx(sum(plan) / DEPTH)
        if sum(sizes):
            assert trace.retention[index] == pytest.approx(sum(plan) / DEPTH / sum(sizes))
        longest = [max(a, text + n) for a, n in zip(longest, stored, strict=True)]
    first = next(layer for layer, counts in enumerate(told) if counts != trace.latest.vision_tokens)
    wanted = [held(layer, n + 3) for layer, n in enumerate(longest)]  # four tokens are three decode steps
    assert slots(cache_in(out))[first:] == wanted[first:]
    assert cache_in(out).get_seq_length() == inputs["input_ids"].shape[1] + 3


def without(frames, places):
    """Tokens of each frame but those at these places of the video."""
    ends = itertools.accumulate(frames)
    return [size - sum(end - size <= at < end for at in places) for size, end in zip(frames, ends, strict=True)]


def in_order(model, inputs, word):
    """Tokens of each picture and video, as they come in the prompt."""
    makes = {"i": "image", "v": "video"}
    if "v" in word and not hasattr(model.model, "get_video_features"):  # its frames are pictures
        return [len(one) for one in features(model, inputs)]
    encoded = {at: iter(features(model, inputs, makes[at])) for at in makes if at in word}
    return [len(next(encoded[at])) for at in word if at in encoded]


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
    assert [layer.keys.shape[-2] for layer in cache_in(out).layers] == [n + 5 for n in expected]
