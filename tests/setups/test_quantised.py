"""Quantised linear layers: modules that stand in for `nn.Linear` and have no float weight."""

import copy
import functools

import pytest
import torch
from torch import nn

from tests.models import MIXED, batch, tiny
from tests.setups.running import FIRST, SETUPS, prefill, same_prefill


class Int8Linear(nn.Module):
    """Weights in eight bits with a scale a row, made whole on the way through."""

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def whole(self):
        return self.weight * self.scale

    def forward(self, rows):
        return nn.functional.linear(rows, self.whole(), self.bias)


def each_linear(model):
    """Those of tower and decoder: where the head is tied (Gemma 3), its whole weights would be the embeddings' too."""
    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                yield module, name, child


@pytest.fixture(scope="module")
def pairs():
    """Each family's model with quantised layers, and one with the weights these come to."""

    @functools.cache
    def of(family):
        packed, whole = copy.deepcopy(tiny(family)), copy.deepcopy(tiny(family))
        places = [list(each_linear(model)) for model in (packed, whole)]
        for (module, name, child), (_, _, twin) in zip(*places, strict=True):
            setattr(module, name, Int8Linear(child))
            twin.weight.data = getattr(module, name).whole()
        return packed, whole

    return of


@pytest.mark.parametrize(("name", "family"), SETUPS)
def test_quantised_layers_are_their_whole_weights(name, family, pairs):
    packed, whole = pairs(family)
    inputs = batch(family, MIXED)
    logits = same_prefill(packed, whole, inputs, FIRST[name])
    assert not torch.equal(logits, prefill(tiny(family), inputs, FIRST[name])[0])
