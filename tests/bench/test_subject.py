"""What is benched: shapes without weights, and checkpoints shown noise."""

import pytest
import torch

import foveate as fv
from foveate.bench.held import hold
from foveate.bench.shapes import shape
from foveate.bench.subject import config_of_shape, from_checkpoint
from foveate.bench.workload import PromptSize, Workload
from tests.models import FAMILIES, batch, tiny


@pytest.fixture(scope="module")
def vlm():
    return fv.load(device="cpu")


def test_a_shape_for_arithmetic_has_neither_weights_nor_tensors():
    subject = config_of_shape(shape("qwen2-vl-72b"), torch.bfloat16, PromptSize(text_tokens=30, images=2))
    assert subject.workload.inputs == {}
    assert (subject.workload.text_tokens, subject.workload.sizes) == (30, (1296, 1296))
    assert subject.workload.cost(subject.model).prefill_flops > 1e14


def test_a_checkpoint_is_shown_noise_and_as_many_words_as_asked_for(vlm):
    subject = from_checkpoint(vlm, PromptSize(batch=3, text_tokens=50, images=1))
    workload = subject.workload
    assert workload.inputs["input_ids"].shape == (3, workload.vision_tokens + workload.text_tokens)
    assert 44 < workload.text_tokens <= 50  # this tokenizer spells a word
    assert (subject.name, subject.shape, workload.batch) == ("embedded", None, 3)
    assert all(torch.equal(tensor[:1], tensor[-1:]) for tensor in workload.inputs.values())
    assert vlm.model.generation_config.eos_token_id is None
    cost = vlm.prepare(vlm_picture(), "word").cost()
    assert workload.cost(vlm.model).tower_flops == cost.tower_flops


def vlm_picture():
    return torch.zeros(672, 672, 3, dtype=torch.uint8).numpy()


def test_less_text_than_the_template_takes_is_refused(vlm):
    with pytest.raises(fv.SettingError, match="this model's template alone takes"):
        from_checkpoint(vlm, PromptSize(text_tokens=1))


def test_a_checkpoint_is_shown_no_video(vlm):
    with pytest.raises(fv.SettingError, match="go with a named shape"):
        from_checkpoint(vlm, PromptSize(frames=4))


def test_a_checkpoint_is_not_shown_more_pictures_than_memory_holds(vlm):
    with pytest.raises(fv.SettingError, match="at most 64 pictures of noise; got 1000"):
        from_checkpoint(vlm, PromptSize(images=1000))


@pytest.mark.parametrize("family", [name for name in ("qwen3_5", "gemma3") if name in FAMILIES])
def test_caches_with_states_and_sliding_windows_are_weighed(family):
    model, inputs = tiny(family), batch(family, ("tit",))
    text_tokens = inputs["input_ids"].shape[1] - 25
    held = hold(model, Workload(inputs, 1, text_tokens, (25,)), None)
    layers = model(**inputs, use_cache=True).past_key_values.layers
    with_keys = [layer for layer in layers if getattr(layer, "keys", None) is not None]
    assert held.kv_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in with_keys) > 0
    assert held.tokens == (25,) * len(layers)
