"""Training inside a context: gradients with checkpointing are those without, or are refused; labels; PEFT."""

import copy
import functools
import inspect

import peft
import pytest
import torch

import foveate as fv
from foveate._transformers import recomputes_from_outside
from foveate.contract import Attention, Cut, Hidden, LayerStage, Method
from tests.invariants.settings import METHODS
from tests.invariants.test_generation import switch
from tests.models import batch, is_vision, tiny

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still reads it
KINDS = {"reentrant": {"use_reentrant": True}, "other": {"use_reentrant": False}}
BY_ATTENTION = ("prumerge", "prumerge_plus")
"""Methods that weight rows by the tower's attention."""


@functools.cache
def of_float64():
    return copy.deepcopy(tiny("llava")).double().train()


def trained(model, method, checkpointing=None, labels=None, words=("titt", "tit")):
    """The loss, and the gradients by name."""
    inputs = {name: one.double() if one.is_floating_point() else one for name, one in batch("llava", words).items()}
    ids = inputs["input_ids"]
    labels = ids.masked_fill(is_vision(ids) | (inputs["attention_mask"] == 0), -100) if labels is None else labels
    model.zero_grad(set_to_none=True)
    if checkpointing:
        switch(model, "enable", checkpointing)
    try:
        with fv.drop(model, method):
            loss = model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
    finally:
        if checkpointing:
            switch(model, "disable")
    return loss.detach(), {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


def assert_same(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-12)


@pytest.fixture
def model():
    model = of_float64()
    switch(model, "enable")
    outside = recomputes_from_outside(model.get_decoder().layers[0])
    switch(model, "disable")
    if outside:
        pytest.skip("checkpointing of this transformers is refused")
    yield model
    model.requires_grad_(True)


@pytest.mark.parametrize("tower", ["trained", "frozen"])
@pytest.mark.parametrize("name", METHODS)
def test_gradients_with_checkpointing_are_those_without(model, name, tower):
    model.model.vision_tower.requires_grad_(tower == "trained")
    loss, expected = trained(model, METHODS[name])
    for kind, checkpointing in KINDS.items():
        if kind == "reentrant" and tower == "trained" and name.rpartition("-")[0] in BY_ATTENTION:
            with pytest.raises(fv.UnsupportedError, match="reentrant"):
                trained(model, METHODS[name], checkpointing)
            continue
        same, gradients = trained(model, METHODS[name], checkpointing)
        assert torch.equal(same, loss)
        assert_same(gradients, expected)


def test_weights_of_a_merge_keep_their_gradient(model):
    block = model.model.vision_tower.encoder.layers[-1].self_attn.q_proj.weight
    trained(model, METHODS["prumerge-0"])
    assert block.grad.abs().max() > 0


@pytest.mark.parametrize("layer", ["ran", "next"])
def test_weights_of_others_keep_their_gradient_too(model, layer):
    signal = Attention(rows="last", layer=layer)

    class ByAttention(Method):
        name = "by_attention"

        def stages(self, shape):
            return (LayerStage(2, reads=(Hidden(), signal), keep=0.5, pick=self.pick),)

        def pick(self, view, count):
            rows = view.hidden * (1 + 100 * view[signal][:, None])
            kept = torch.arange(count)
            return Cut.take(kept, len(view)).with_rows(rows[:count])

    _, expected = trained(model, ByAttention())
    assert_same(trained(model, ByAttention(), KINDS["other"])[1], expected)
    if layer == "next":  # computed outside the layer that is checkpointed
        assert_same(trained(model, ByAttention(), KINDS["reentrant"])[1], expected)
    else:
        with pytest.raises(fv.UnsupportedError, match="reentrant"):
            trained(model, ByAttention(), KINDS["reentrant"])


@pytest.mark.parametrize("name", ["fastv-0", "prumerge-0", "thintower-0", "pixelprune-0"])
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_with_a_frozen_tower_that_is_checkpointed(name, kind):
    """PEFT lets embeddings require gradients, the tower's too, so frozen blocks run again as well."""
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=".*language_model.*(q_proj|v_proj)", init_lora_weights=False, r=2)
    model = peft.get_peft_model(copy.deepcopy(of_float64()), lora).train()
    model.enable_input_require_grads()
    _, expected = trained(model, METHODS[name])
    _, gradients = trained(model, METHODS[name], KINDS[kind])
    assert expected
    assert_same(gradients, expected)


# -- labels --------------------------------------------------------------------------------------------------------


def labelled(model, labels, method="divprune", retention=0.5, **more):
    with fv.drop(model, method, retention=retention):
        return model(**batch("llava", ["titt", "tit"]), labels=labels, **more).loss


@pytest.fixture
def input_ids():
    return batch("llava", ["titt", "tit"])["input_ids"]


@pytest.mark.parametrize("method", ["divprune", "v2drop", "averagepool", "pixelprune"])
@pytest.mark.parametrize("gradients", [True, False])
def test_labels_on_vision_tokens_are_refused_and_the_message_masks_them(method, gradients, input_ids):
    model, labels, retention = tiny("llava"), input_ids.clone(), None if method == "pixelprune" else 0.5
    with torch.set_grad_enabled(gradients):
        with pytest.raises(fv.UnsupportedError, match="labels are on vision") as caught:
            labelled(model, labels, method, retention)
        line = str(caught.value).partition("Mask them: ")[2].partition(". With TRL")[0]
        exec(line, {"labels": labels, "input_ids": input_ids, "torch": torch})
        assert torch.equal(labels, input_ids.masked_fill(is_vision(input_ids), -100))
        assert labelled(model, labels, method, retention).isfinite()


def test_labels_are_also_seen_by_position_through_peft_and_shifted(input_ids):
    model = tiny("llava")
    inputs = batch("llava", ["titt", "tit"])
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(fv.UnsupportedError, match="vision"):
        labelled(wrapped, input_ids.clone())
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    by_place = [inputs.get(name) for name in names[: names.index("labels")]]
    with fv.drop(model, "divprune"), pytest.raises(fv.UnsupportedError, match="vision"):
        model(*by_place, input_ids)
    masked = input_ids.masked_fill(is_vision(input_ids), -100)
    shifted = [
        torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:].contiguous() for labels in (masked, input_ids)
    ]
    assert labelled(model, masked, shift_labels=shifted[0], num_items_in_batch=9).isfinite()
    with pytest.raises(fv.UnsupportedError, match="vision"):
        labelled(model, masked, shift_labels=shifted[1])


def test_labels_that_no_drop_can_spoil_pass(input_ids):
    model = tiny("llava")
    with torch.no_grad():
        plain = model(**batch("llava", ["titt", "tit"]), labels=input_ids).loss
        assert torch.equal(labelled(model, input_ids, "v2drop", 1.0), plain)
        assert labelled(model, input_ids, fv.ThinTower(keep=0.5), None).isfinite()
    with fv.drop(model, "divprune"), torch.no_grad():
        assert model(**batch("llava", ["titt"]), labels=None).loss is None
