"""What cannot be right is refused, with what was wrong, what was got and what to do."""

import pytest
import torch
from transformers import DynamicCache, StaticCache

import foveate as fv
from foveate._transformers import cache_in, with_cache
from tests.invariants.settings import KINDS
from tests.models import ENCODES_FIRST, batch, cached, generate, tiny

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5))


@pytest.mark.parametrize("family", KINDS)
def test_a_static_cache_is_refused_before_anything_is_written(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
    with fv.drop(model, METHOD), pytest.raises(fv.UnsupportedError, match=r"StaticLayer.*Use a DynamicCache"):
        generate(model, inputs, **with_cache(cache))
    assert all(part is None for layer in cache.layers for part in cached(layer))
    with fv.drop(model, METHOD), pytest.raises(fv.UnsupportedError, match="Use a DynamicCache"):
        generate(model, inputs, cache_implementation="static")


@pytest.mark.parametrize("family", KINDS)
def test_a_static_cache_serves_where_nothing_is_dropped(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    with fv.drop(model, fv.Uniform(layers=(1,), keep=(1.0,))):
        kept = generate(model, inputs, cache_implementation="static", disable_compile=True)
    plain = generate(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(kept.sequences, plain.sequences)


def test_an_offloaded_cache_is_refused_by_name():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    cache = DynamicCache(config=model.config.get_text_config())
    cache.offloading = True
    with fv.drop(model, METHOD), pytest.raises(fv.UnsupportedError, match="offloaded"), torch.no_grad():
        model(**inputs, **with_cache(cache))


@pytest.mark.parametrize("family", KINDS)
def test_a_pruned_cache_outside_its_context(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    with fv.drop(model, METHOD), torch.no_grad():
        cache = cache_in(model(**inputs))
    with pytest.raises(fv.SessionError, match="used outside its context"), torch.no_grad():
        model(input_ids=torch.tensor([[5]]), **with_cache(cache))


@pytest.mark.skipif(not ENCODES_FIRST, reason="here transformers leaves pictures out of a chunked prefill by itself")
@pytest.mark.parametrize("family", KINDS)
def test_chunked_prefill_that_splits_a_picture(family):
    model, inputs = tiny(family), batch(family, ["tttitttttt"])
    with fv.drop(model, METHOD), pytest.raises(fv.UnsupportedError, match="prefill_chunk_size"):
        generate(model, inputs, prefill_chunk_size=15)


@pytest.mark.parametrize(
    ("method", "first"),
    [(METHOD, "ti"), (fv.V2Drop(layers=(1, 3), tokens=30), "tii")],  # of the second call's 25 tokens none would go
)
def test_a_call_that_may_go_on_in_the_image_of_the_call_before(method, first):
    """Where one call ends in vision tokens and the next begins with some, they may be of one image."""
    model, before, after = tiny("llava"), batch("llava", [first]), batch("llava", ["it"], start=False)
    del after["attention_mask"]  # it would have to cover the cache
    cache, another, empty = (DynamicCache(config=model.config.get_text_config()) for _ in range(3))
    with fv.drop(model, method), torch.no_grad():
        model(**before, **with_cache(another))
        model(**after, **with_cache(empty))  # behind no image
        model(**before, **with_cache(cache))
        with pytest.raises(fv.UnsupportedError, match="has split an image"):
            model(**after, **with_cache(cache))


@pytest.mark.skipif(not ENCODES_FIRST, reason="here transformers leaves pictures out of a chunked prefill by itself")
@pytest.mark.parametrize("family", KINDS)
def test_chunked_prefill_that_does_not_split_a_picture(family):
    model, inputs = tiny(family), batch(family, ["titttttttttttttttttttttttttttttttttttttttttttttt"])
    with fv.drop(model, METHOD):
        whole = generate(model, inputs)
        chunked = generate(model, inputs, prefill_chunk_size=100)
    assert inputs["input_ids"].shape[1] > 100
    assert torch.equal(whole.sequences, chunked.sequences)


@pytest.mark.skipif(not ENCODES_FIRST, reason="here transformers leaves pictures out of a chunked prefill by itself")
@pytest.mark.parametrize("family", [kind for kind in KINDS if kind != "qwen3_5"])  # its first layer has a state
def test_chunked_prefill_that_parts_a_picture_from_the_question_of_a_method_that_reads_it(family):
    model, inputs = tiny(family), batch(family, ["titttttttttttttttttttttttttttttttttttttttttttttt"])
    with fv.drop(model, fv.FastV(layers=(1,), keep=(0.5,))):
        with pytest.raises(fv.UnsupportedError, match="prefill_chunk_size"):
            generate(model, inputs, prefill_chunk_size=100)
        whole = generate(model, inputs)
        chunked = generate(model, inputs, prefill_chunk_size=inputs["input_ids"].shape[1])
    assert torch.equal(whole.sequences, chunked.sequences)


def test_samples_packed_into_one_row():
    model = tiny("llava")
    one = batch("llava", ["tit"])
    length = one["input_ids"].shape[1]
    packed = {
        "input_ids": one["input_ids"].repeat(1, 2),
        "pixel_values": one["pixel_values"].repeat(2, 1, 1, 1),
        "position_ids": torch.arange(length).repeat(2)[None],
    }
    with fv.drop(model, METHOD), pytest.raises(fv.UnsupportedError, match="packed into one row"), torch.no_grad():
        model(**packed, use_cache=False)


def test_a_method_that_answers_nonsense_is_told():
    class Wrong(fv.Uniform):
        def pick(self, view, count):
            return torch.ones(len(view))

    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with fv.drop(model, Wrong(layers=(1,), keep=(0.5,))), pytest.raises(fv.MethodError, match="int64"):
        generate(model, inputs)


def test_asking_a_trace_before_anything_ran():
    with fv.drop(tiny("llava"), METHOD) as trace:
        assert trace.stages == []
        assert repr(trace) == "Trace(nothing ran yet)"
        with pytest.raises(fv.SessionError, match="call the model inside the context first"):
            _ = trace.retention


def test_a_prompt_of_nothing_but_tokens_that_leave():
    model, inputs = tiny("llava"), batch("llava", ["i"])
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, 1:], "attention_mask": inputs["attention_mask"][:, 1:]}
    method = fv.V2Drop(layers=(1,), keep=(0.0,), min_keep=0)
    with fv.drop(model, method), pytest.raises(fv.UnsupportedError, match="keep a token"), torch.no_grad():
        model(**inputs)


def test_a_tower_whose_cls_is_a_vision_token():
    import copy

    model = copy.deepcopy(tiny("llava"))
    model.config.vision_feature_select_strategy = "full"
    pixels = {"pixel_values": torch.randn(1, 3, 70, 70)}
    with fv.drop(model, fv.MustDrop(pruning_layers=(1,))), pytest.raises(fv.UnsupportedError, match="CLS"):
        model.model.get_image_features(**pixels)
