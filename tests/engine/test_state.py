"""The state of a model: it differs where an output may differ, and not by running."""

import copy

import peft
import pytest
import torch
from torch import nn

from foveate.engine.state import state_of
from tests.models import batch, generate, tiny

AVERAGED = 0.97
CHANGES = {
    "EMA weights copied in": lambda model: [weight.data.copy_(weight.data * AVERAGED) for weight in model.parameters()],
    "EMA weights swapped in": lambda model: [
        setattr(weight, "data", weight * AVERAGED) for weight in model.parameters()
    ],
    "one weight scaled through .data": lambda model: layer_of(model).mlp.up_proj.weight.data.mul_(2),
    "a weight edited as an array": lambda model: layer_of(model).mlp.up_proj.weight.detach().numpy().fill(0.1),
    "a transposed weight": lambda model: layer_of(model).self_attn.q_proj.weight.data.mul_(2),
    "a buffer": lambda model: model.get_decoder().rotary_emb.inv_freq.data.mul_(2),
    "a hook": lambda model: layer_of(model).mlp.register_forward_hook(print),
    "an attribute": lambda model: setattr(layer_of(model).self_attn, "scaling", 0.5),
    "an attribute of a config": lambda model: setattr(layer_of(model).self_attn.config, "rms_norm_eps", 0.5),
    "every other row": lambda model: layer_of(model).mlp.up_proj.weight.data[1::2].mul_(0.5),
    "all columns but the first": lambda model: layer_of(model).mlp.up_proj.weight.data[:, 1:].mul_(0.5),
    "another forward": lambda model: setattr(layer_of(model), "forward", print),
    "another module": lambda model: setattr(layer_of(model), "mlp", copy.deepcopy(layer_of(model).mlp)),
}


def layer_of(model):
    return model.get_decoder().layers[2]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_model_that_is_changed_has_another_state(change):
    model = copy.deepcopy(tiny("llava"))
    weight = layer_of(model).self_attn.q_proj.weight
    weight.data = weight.data.T.contiguous().T
    before = state_of(model)
    assert state_of(model) == before
    CHANGES[change](model)
    assert state_of(model) != before


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_are_part_of_the_state():
    settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, r=2)
    model = peft.get_peft_model(copy.deepcopy(tiny("llava")), settings).eval()
    model.add_adapter("other", settings)
    states = [state_of(model)]
    model.set_adapter("other", inference_mode=True)
    states.append(state_of(model))
    with model.disable_adapter():
        states.append(state_of(model))
    layer_of(model).self_attn.q_proj.scaling["other"] = 0.5
    states.append(state_of(model))
    assert [states.index(state) for state in states] == [0, 1, 2, 3]


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_running_a_model_leaves_its_state(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    before = state_of(model)
    generate(model, inputs)
    with torch.no_grad():
        model(**inputs, output_hidden_states=True)
    assert state_of(model) == before


def test_autocast_is_part_of_the_state():
    model = tiny("llava")
    with torch.autocast("cpu", torch.bfloat16):
        inside = state_of(model)
    assert inside != state_of(model)


def test_weights_that_are_not_numbers_or_not_there_have_a_state():
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, float("nan"))
    model.register_buffer("packed", torch.arange(8, dtype=torch.uint8))
    model.register_buffer("none", torch.empty(0))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    assert state_of(model) == state_of(model)
    before = state_of(model)
    model.packed.data.add_(1)
    assert state_of(model) != before
    model.to("meta")
    assert state_of(model) == state_of(model)
