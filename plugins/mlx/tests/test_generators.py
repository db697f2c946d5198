"""Prompts in batches, later turns, and what a generator would get wrong is refused."""

from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.generate import PromptCacheState, ar, dispatch, stream_generate
from mlx_vlm.generate.ar import BatchGenerator, generate_step

import foveate_mlx
from foveate.errors import SessionError, UnsupportedError
from tests import models

NEW = 5


class Never:
    """No token ends an answer."""

    def __call__(self, token):
        return False

    def add_eos_token_ids(self, tokens):
        pass


TOKENIZER = SimpleNamespace(eos_token_ids=[], eos_token_id=None, all_special_ids=[], stopping_criteria=Never())
PROCESSOR = SimpleNamespace(tokenizer=TOKENIZER)


@pytest.fixture(autouse=True)
def no_text(monkeypatch):
    """Tokens of random models are no text."""
    silent = SimpleNamespace(last_segment="", text="", add_token=lambda *_, **__: None, finalize=lambda: None)
    monkeypatch.setattr(dispatch, "make_streaming_detokenizer", lambda processor: silent, raising=False)


def alone(model, prompts):
    """The tokens of each prompt, one by one."""
    answers = []
    for ids, pixels, inputs in prompts:
        steps = generate_step(ids, model, pixels, mx.ones_like(ids), max_tokens=NEW, temperature=0.0, **inputs)
        answers.append([token for token, _ in steps])
    return answers


def generator(model, **options):
    return BatchGenerator(
        model.language_model, PROCESSOR, max_tokens=NEW, prefill_batch_size=8, completion_batch_size=8,
        stop_tokens=set(), **options,
    )  # fmt: skip


def answers(batch, uids):
    """The tokens of each prompt of a batch."""
    tokens = {uid: [] for uid in uids}
    while batch.has_work:
        for response in batch.next()[1]:
            tokens[response.uid].append(response.token)
    batch.close()
    return [tokens[uid] for uid in uids]


def embedded(model, ids, pixels, mask, inputs):
    features = model.get_input_embeddings(ids, pixels, mask=mask, **inputs)
    return {**inputs, **{name: value for name, value in features.to_dict().items() if value is not None}}


def as_a_server_does(model, prompts):
    """Each prompt is embedded alone, and all are decoded together."""
    batch, uids = generator(model), []
    for ids, pixels, inputs in prompts:
        options = embedded(model, ids, pixels, mx.ones_like(ids), inputs)
        uids += batch.insert([ids[0].tolist()], max_tokens=NEW, prompt_kwargs=[options])
    return answers(batch, uids)


def as_one_array(model, prompts):
    """All prompts are padded and embedded together, as in batch_generate."""
    length = max(ids.shape[1] for ids, _, _ in prompts)
    pads = [length - ids.shape[1] for ids, _, _ in prompts]
    left = [((0, 0), (pad, 0)) for pad in pads]
    ids = mx.concatenate([mx.pad(ids, pad) for (ids, _, _), pad in zip(prompts, left, strict=True)])
    mask = mx.concatenate([mx.pad(mx.ones_like(ids), pad) for (ids, _, _), pad in zip(prompts, left, strict=True)])
    grids = mx.concatenate([inputs["image_grid_thw"] for _, _, inputs in prompts])
    pixels = mx.concatenate([pixels for _, pixels, _ in prompts])
    options = ar._split_prompt_kwargs_per_row(embedded(model, ids, pixels, mask, {"image_grid_thw": grids}), len(ids))
    batch = generator(model)
    return answers(batch, batch.insert(ids, NEW, prompt_kwargs=options, attention_mask=mask))


QWEN2 = [models.qwen2_vl, models.qwen2_5_vl]  # a stock batch of Qwen3-VL differs from single runs without foveate


batches = pytest.mark.skipif(
    "attention_mask" not in BatchGenerator.insert.__code__.co_varnames,
    reason="batches of mlx-vlm 0.6 differ from single runs without foveate too",
)


@batches
@pytest.mark.parametrize("make", QWEN2)
def test_prompts_of_a_server_answer_together_as_alone(make):
    model = make()
    prompts = [models.qwen_inputs(grids, seed) for seed, grids in enumerate(([(1, 8, 8)], [(1, 8, 12), (1, 8, 8)]), 1)]
    with foveate_mlx.drop(model, "divprune", retention=1 / 3) as trace:
        single = alone(model, prompts)
        assert as_a_server_does(model, prompts) == single
    assert trace.kept == [5, 8, 5] * 2
    assert single != alone(model, prompts)


@batches
@pytest.mark.parametrize("make", models.QWEN)
def test_prompts_of_one_padded_array_answer_as_alone(make):
    model = make()
    short, (ids, pixels, inputs) = models.qwen_inputs([(1, 8, 8)], 1), models.qwen_inputs([(1, 8, 8)], 2)
    prompts = [short, (mx.concatenate([ids, mx.array([[11, 12]])], axis=1), pixels, inputs)]
    with foveate_mlx.drop(model, "divprune", tokens=5) as trace:
        assert as_one_array(model, prompts) == alone(model, prompts)
    assert trace.kept == [5] * 4


def test_prompts_that_keep_different_numbers_are_refused_in_one_array():
    model = models.qwen2_vl()
    ids = mx.concatenate([models.qwen_inputs([(1, 8, 8)])[0], mx.array([[*range(1, 25)]])])  # the second has no picture
    _, pixels, inputs = models.qwen_inputs([(1, 8, 8)])
    with (
        pytest.raises(UnsupportedError, match="batch"),
        foveate_mlx.drop(model, "divprune", retention=0.5),
    ):
        model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)


def turn(model, ids, pixels, inputs, **options):
    """Three tokens of a turn, with their log-probabilities."""
    results = stream_generate(
        model, PROCESSOR, "", input_ids=ids, pixel_values=pixels, mask=mx.ones_like(ids), max_tokens=3,
        temperature=0.0, **inputs, **options,
    )  # fmt: skip
    return [(one.token, np.array(one.logprobs).ravel()) for one in results][:3]


@pytest.mark.parametrize("inside", [True, False])
def test_a_later_turn_begins_afresh(inside):
    model, (ids, pixels, inputs) = models.qwen2_5_vl(), models.qwen_inputs([(1, 8, 8)])
    state = PromptCacheState()
    with foveate_mlx.drop(model, "divprune", retention=1 / 3):
        first = turn(model, ids, pixels, inputs, prompt_cache_state=state)
        later = mx.concatenate([ids, mx.array([[token for token, _ in first]]), mx.array([[20, 21]])], axis=1)
        if inside:
            second, cold = (turn(model, later, pixels, inputs, prompt_cache_state=one) for one in (state, None))
    if not inside:
        second, cold = (turn(model, later, pixels, inputs, prompt_cache_state=one) for one in (state, None))
    for own, theirs in zip(second, cold, strict=True):
        assert np.array_equal(own[1], theirs[1])


def test_a_state_that_began_outside_is_not_used_inside():
    model, (ids, pixels, inputs) = models.qwen2_5_vl(), models.qwen_inputs([(1, 8, 8)])
    state = PromptCacheState()
    first = turn(model, ids, pixels, inputs, prompt_cache_state=state)
    later = mx.concatenate([ids, mx.array([[token for token, _ in first]]), mx.array([[20, 21]])], axis=1)
    with foveate_mlx.drop(model, "divprune", retention=1 / 3) as trace:
        second, cold = (turn(model, later, pixels, inputs, prompt_cache_state=one) for one in (state, None))
    assert trace.kept == [5, 5]
    for own, theirs in zip(second, cold, strict=True):
        assert np.array_equal(own[1], theirs[1])


def test_prefix_caches_are_refused():
    from mlx_vlm.apc import APCManager

    model, prompt = models.qwen2_vl(), models.inputs_of(models.qwen2_vl)
    manager = APCManager()
    with foveate_mlx.drop(model, "divprune", retention=0.5):
        with pytest.raises(UnsupportedError, match="APC"):
            turn(model, *prompt, apc_manager=manager)
        ids, pixels, inputs = prompt
        options = embedded(model, ids, pixels, mx.ones_like(ids), inputs)
        batch = generator(model)
        batch.apc_manager = manager
        with pytest.raises(UnsupportedError, match="APC"):
            batch.insert([ids[0].tolist()], prompt_kwargs=[options])


def test_draft_models_are_refused():
    model, (ids, pixels, inputs) = models.qwen2_vl(), models.inputs_of(models.qwen2_vl)
    other = models.qwen2_vl()
    with foveate_mlx.drop(model, "divprune", retention=0.5):
        with pytest.raises(UnsupportedError, match="draft"):
            next(generate_step(ids, model, pixels, mx.ones_like(ids), draft_model=other, draft_kind="mtp", **inputs))
        options = embedded(model, ids, pixels, mx.ones_like(ids), inputs)
        batch = generator(model)
        batch.draft_model = other
        with pytest.raises(UnsupportedError, match="draft"):
            batch.insert([ids[0].tolist()], prompt_kwargs=[options])


def test_two_models_drop_at_once_and_contexts_close_in_any_order():
    one, two = models.qwen2_vl(), models.llava()
    insert = BatchGenerator.insert
    first, second = foveate_mlx.drop(one, "divprune", tokens=5), foveate_mlx.drop(two, "divprune", tokens=4)
    first_trace, second_trace = first.__enter__(), second.__enter__()
    with pytest.raises(SessionError, match="open"), foveate_mlx.drop(one, "divprune"):
        pass
    prompts = [models.inputs_of(models.qwen2_vl)], [models.inputs_of(models.llava)]
    assert as_a_server_does(one, prompts[0]) == alone(one, prompts[0])
    assert alone(two, prompts[1])
    first.__exit__(None, None, None)
    assert BatchGenerator.insert is not insert
    assert alone(two, prompts[1])
    second.__exit__(None, None, None)
    assert BatchGenerator.insert is insert
    assert set(first_trace.kept) == {5}
    assert second_trace.kept == [4, 4]
