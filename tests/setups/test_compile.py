"""`torch.compile`d models: what dynamo traced outside a context must not be what runs inside, nor the other way round.

The backend "eager" runs what was traced as it is, so this is about tracing, guards and graph breaks alone.
"""

import pytest
import torch
import transformers
from torch._dynamo.utils import counters

import foveate as fv
from tests.families.llavas import llava as config
from tests.models import NO_PLACEHOLDERS, batch, generate
from tests.tiny import PAD

ONE, OTHER = fv.V2Drop(layers=(1,), keep=(0.5,)), fv.Uniform(layers=(0, 1), keep=(0.6, 0.5))
WORDS = ["titit"]


def shallow():
    """Two layers here and there: tracing takes seconds."""
    torch.manual_seed(0)
    settings = config()
    settings.text_config.num_hidden_layers = settings.vision_config.num_hidden_layers = 2
    model = transformers.LlavaForConditionalGeneration(settings).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return model


def whole(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return torch.compile(model, backend="eager")  # a wrapper, whose generate is the model's own


def layer_by_layer(model):
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")
    return model


def logits(model, method=None):
    inputs = batch("llava", WORDS)
    if method is None:
        return torch.cat(generate(model, inputs, new_tokens=2).logits)
    with fv.drop(model, method) as trace:
        together = torch.cat(generate(model, inputs, new_tokens=2).logits)
    assert [stage.layer for stage in trace.stages] == list(method.layers)
    return together


@pytest.mark.parametrize(("compiled", "methods"), [(whole, (None, ONE, None)), (layer_by_layer, (None, ONE, OTHER))])
@pytest.mark.further
def test_contexts_come_and_go_around_a_compiled_model(compiled, methods):
    plain, model = shallow(), shallow()
    expected = {method: logits(plain, method) for method in {*methods}}
    torch._dynamo.reset()
    counters.clear()
    model = compiled(model)
    for method in methods:
        torch.testing.assert_close(logits(model, method), expected[method], atol=1e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] > 2  # dynamo did trace
    assert not torch.equal(expected[None], expected[ONE])


def test_generates_own_compilation_needs_a_static_cache_and_is_refused():
    model, inputs = shallow(), batch("llava", WORDS)
    settings = {"cache_implementation": "static", "max_new_tokens": 3, "do_sample": False, **NO_PLACEHOLDERS}
    with fv.drop(model, ONE), pytest.raises(fv.UnsupportedError, match="Use a DynamicCache"):
        model.generate(**inputs, **settings)
