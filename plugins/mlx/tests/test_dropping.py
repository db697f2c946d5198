"""Nothing changes if all stays, and a shorter run equals one that hides the dropped columns."""

from importlib.metadata import version

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_vlm.generate.ar import generate_step
from mlx_vlm.models.cache import make_prompt_cache

import foveate_mlx
from foveate.hosts import Reducer
from foveate_mlx import check, host
from foveate_mlx.dropping import Dropper
from tests import models
from tests.models import IMAGE, QWEN, RUNS, VIDEO

ROWS = ["divprune", "vidcom2", "averagepool", "random:layers=0", "uniform:layers=0", "cdpruner", "mmtok"]
FILMS = ["dycoke", "evs", "dtd", "vidcom2", "cdpruner:scope=frame"]


def steps(model, ids, pixels, inputs, **options):
    """Four greedy tokens with their log-probabilities."""
    every = generate_step(ids, model, pixels, mx.ones_like(ids), max_tokens=4, temperature=0.0, **inputs, **options)
    return [(token, np.array(logprobs)) for token, logprobs in every]


def same(answer, other, atol=0.0):
    assert [token for token, _ in answer] == [token for token, _ in other]
    for (_, own), (_, theirs) in zip(answer, other, strict=True):
        np.testing.assert_allclose(own, theirs, atol=atol, rtol=0)


def log_softmax(logits):
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def shown(features, trace, ids):
    """The decoder's rows with merged ones in their places, and which columns it may see."""
    vision = np.isin(np.array(ids)[0], [IMAGE, VIDEO])
    visible, columns = ~vision, np.split(np.flatnonzero(vision), np.cumsum(trace.tokens)[:-1])
    for image, source in zip(columns, trace.sources, strict=True):
        visible[image[source]] = True
    return visible


@pytest.mark.parametrize("make", QWEN + RUNS)
def test_keeping_all_changes_no_bit_and_nothing_stays_behind(make):
    model, prompt = make(), models.inputs_of(make)
    full = steps(model, *prompt)
    with foveate_mlx.drop(model, "divprune", retention=1.0) as trace:
        same(steps(model, *prompt), full)
    assert trace.kept == trace.tokens
    same(steps(model, *prompt), full)
    assert "get_input_embeddings" not in vars(model)


def hidden_by_a_mask(model, prompt, answer, trace):
    """The whole decoder of a model with M-RoPE on all columns, with dropped ones masked out; pooled ones have means."""
    ids, pixels, inputs = prompt
    tokens = mx.array([[token for token, _ in answer[:-1]]])
    features = model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)
    decoder, every = model.language_model, mx.concatenate([ids, tokens], axis=1)
    visible = np.append(shown(features, trace, ids), [True] * tokens.shape[1])
    length = every.shape[1]
    causal = (np.tril(np.ones((length, length), bool)) & visible) | np.eye(length, dtype=bool)
    more = {}
    if features.visual_pos_masks is not None:
        vision = mx.array(np.isin(np.array(every), [IMAGE, VIDEO]))
        more = {"visual_pos_masks": vision, "deepstack_visual_embeds": features.deepstack_visual_embeds}
    hidden = decoder.model(
        every,
        inputs_embeds=mx.concatenate([features.inputs_embeds, decoder.model.embed_tokens(tokens)], axis=1),
        mask=mx.array(causal)[None, None],
        position_ids=decoder.get_rope_index(every, inputs.get("image_grid_thw"), inputs.get("video_grid_thw"))[0],
        **more,
    )
    return log_softmax(decoder.lm_head(hidden)[0, ids.shape[1] - 1 :])


@pytest.mark.parametrize("make", QWEN)
@pytest.mark.parametrize("method", [name for name in ROWS if name != "averagepool"])
def test_a_shorter_run_equals_one_that_hides_the_dropped_columns(make, method):
    model, prompt = make(), models.inputs_of(make)
    with foveate_mlx.drop(model, method, retention=1 / 3) as trace:
        short = steps(model, *prompt)
    assert sum(trace.kept) <= 14
    assert trace.tokens == [16, 24]
    for own, theirs in zip(short, hidden_by_a_mask(model, prompt, short, trace), strict=True):
        np.testing.assert_allclose(own[1], theirs, atol=1e-5)
    with foveate_mlx.drop(model, method, retention=1 / 3):
        same(steps(model, *prompt, prefill_step_size=4), short, 1e-5)
        same(steps(model, *prompt, prefill_step_size=None), short, 1e-5)


@pytest.mark.parametrize("make", [models.qwen2_vl, models.qwen2_5_vl])
@pytest.mark.parametrize("method", FILMS)
def test_films_of_one_run_equal_a_run_that_hides_the_dropped_columns(make, method):
    model, prompt = make(), models.qwen_inputs([(4, 8, 8), (2, 4, 8)], medium="video")
    with foveate_mlx.drop(model, method, retention=0.5) as trace:
        short = steps(model, *prompt)
    assert trace.tokens == [64, 16]
    assert sum(trace.kept) < 45
    for own, theirs in zip(short, hidden_by_a_mask(model, prompt, short, trace), strict=True):
        np.testing.assert_allclose(own[1], theirs, atol=1e-5)


@pytest.mark.skipif(version("mlx-vlm").startswith("0.6."), reason="mlx-vlm 0.6 cannot place such films itself")
def test_a_film_with_times_between_its_frames_is_one_film():
    model = models.qwen3_vl()
    frame = [103, *[VIDEO] * 16, 104]
    ids = mx.array([[5, 6, *frame, 11, *frame, 12, *frame, 13, *frame, 7, 8, 9]])
    pixels = mx.random.normal((4 * 64, 3 * 2 * 4 * 4), key=mx.random.key(1))
    prompt = ids, None, {"pixel_values_videos": pixels, "video_grid_thw": mx.array([[4, 8, 8]])}
    with foveate_mlx.drop(model, "dycoke", retention=0.5) as trace:
        short = steps(model, *prompt)
    assert trace.tokens == [64]
    assert trace.kept == [32]
    assert set(trace.sources[0][:16]) == set(range(16))  # DyCoke keeps the first frame of each four
    for own, theirs in zip(short, hidden_by_a_mask(model, prompt, short, trace), strict=True):
        np.testing.assert_allclose(own[1], theirs, atol=1e-5)


@pytest.mark.parametrize(("make", "bits"), [*((make, None) for make in RUNS), (models.llava, 4)])
def test_where_rows_are_renumbered_a_run_equals_one_from_the_rows_that_are_left(make, bits):
    model, prompt = make(), models.inputs_of(make)
    if bits is not None:
        nn.quantize(model.language_model, group_size=32, bits=bits, class_predicate=lambda _, part: is_even(part))
    ids, pixels, inputs = prompt
    with foveate_mlx.drop(model, "divprune", retention=1 / 3) as trace:
        short = steps(model, *prompt)
    assert set(trace.kept) == {5}
    features = model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)
    columns, decoder = mx.array(np.flatnonzero(shown(features, trace, ids))), model.language_model
    cache = make_prompt_cache(decoder)
    logits = decoder(ids[:, columns], inputs_embeds=features.inputs_embeds[:, columns], cache=cache).logits[0, -1]
    for token, own in short:
        np.testing.assert_allclose(own, log_softmax(logits), atol=1e-5)
        logits = decoder(mx.array([[token]]), cache=cache).logits[0, -1]
    with foveate_mlx.drop(model, "divprune", retention=1 / 3):
        same(steps(model, *prompt, prefill_step_size=4), short, 1e-5)


def is_even(part):
    """Whether a layer's width is one that can be quantised in groups of 32."""
    return hasattr(part, "to_quantized") and part.weight.shape[-1] % 32 == 0


@pytest.mark.parametrize("make", QWEN)
def test_pooled_rows_are_means_on_the_grid(make):
    model, (ids, pixels, inputs) = make(), models.inputs_of(make)
    rows = np.array(model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs).inputs_embeds)[0]
    with foveate_mlx.drop(model, "averagepool", retention=0.25) as trace:
        less = np.array(model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs).inputs_embeds)[0]
    assert trace.kept == [4, 6]
    for start, where, (height, width) in ((3, 3, (4, 4)), (22, 10, (4, 6))):
        image = rows[start : start + height * width].reshape(height // 2, 2, width // 2, 2, -1)
        np.testing.assert_allclose(
            less[where : where + height * width // 4], image.mean((1, 3)).reshape(-1, 32), atol=1e-6
        )


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_rows_of_half_precision_come_through_as_they_are(dtype):
    model, (ids, pixels, inputs) = models.qwen2_vl(), models.inputs_of(models.qwen2_vl)
    model.set_dtype(dtype)
    whole = model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)
    with foveate_mlx.drop(model, "divprune", retention=1 / 3) as trace:
        less = model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)
    assert less.inputs_embeds.dtype == dtype
    columns = mx.array(np.flatnonzero(shown(whole, trace, ids)))
    assert mx.array_equal(less.inputs_embeds, whole.inputs_embeds[:, columns])


def test_the_words_behind_an_image_end_where_the_next_begins_and_are_no_frames(monkeypatch):
    model = models.qwen2_vl()
    ids = [5, 103, *[IMAGE] * 16, 104, 7, 103, *[VIDEO] * 16, 104, 8, 103, *[IMAGE] * 24, 104, 9, 10]
    patches = mx.random.normal((160, 3 * 2 * 4 * 4), key=mx.random.key(1))
    inputs = {
        "image_grid_thw": mx.array([(1, 8, 8), (1, 8, 12)]),
        "video_grid_thw": mx.array([(1, 8, 8)]),
        "pixel_values_videos": patches[:64],
    }
    texts = {}
    stock = Reducer.reduce

    def noting(self, images, pictures, video, text):
        texts[video] = [words.numpy() for words in text]
        return stock(self, images, pictures, video, text)

    monkeypatch.setattr(Reducer, "reduce", noting)
    with foveate_mlx.drop(model, "divprune", retention=0.5) as trace:
        model.get_input_embeddings(mx.array([ids]), patches, mask=mx.ones((1, len(ids))), **inputs)
    assert trace.tokens == [16, 24, 16]
    words = {False: [[104, 7, 103, 104, 8, 103], [104, 9, 10]], True: [[104, 8, 103, 104, 9, 10]]}
    for video, of_medium in words.items():
        for own, tokens in zip(texts[video], of_medium, strict=True):
            np.testing.assert_allclose(own, np.array(model.language_model.model.embed_tokens(mx.array(tokens))))


@pytest.mark.parametrize("make", QWEN + RUNS)
def test_a_check_runs_the_decoder_by_hand_as_a_shorter_run_does(make):
    model, (ids, pixels, inputs) = make(), models.inputs_of(make)
    features = model.get_input_embeddings(ids, pixels, mask=mx.ones_like(ids), **inputs)
    dropper = Dropper(model, "divprune", None, 1 / 3, foveate_mlx.Trace())
    with host.attached(dropper):
        answer = steps(model, ids, pixels, inputs)
    same(check._by_hand(dropper, np.array(ids)[0], features, answer), answer, 1e-5)
    dropper.trace.sources[0] = dropper.trace.sources[0][:-1]
    assert check._distance(check._by_hand(dropper, np.array(ids)[0], features, answer), answer) > 1e-3
