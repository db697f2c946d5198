"""Layers behind a cut hand their rows on as they are, unless somebody reads between them."""

from contextlib import contextmanager

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from foveate.engine.runner import LayerRunner
from foveate.errors import UnsupportedError
from foveate.families.derived import Derived
from foveate.registry import family_for
from tests.models import TINY, batch, made_of

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5))


@pytest.fixture
def said(monkeypatch):
    """What each prefill that drops is told: whether layers may hand rows on."""
    answers, original = [], LayerRunner.passes_rows

    def passes_rows(self, forward, kwargs):
        answers.append(original(self, forward, kwargs))
        return answers[-1]

    monkeypatch.setattr(LayerRunner, "passes_rows", passes_rows)
    return answers


def tiny(family):
    """A model of the test's own: hooks stay on it."""
    return made_of(family, TINY[family].config())


def run(model, inputs, **asked):
    with torch.no_grad():
        return model(**inputs, use_cache=True, **asked)


def same(first, second):
    """Logits and all that is cached, bit for bit."""
    pairs = zip(cache_in(first).layers, cache_in(second).layers, strict=True)
    return torch.equal(first.logits, second.logits) and all(
        torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values) for one, other in pairs
    )


def hooked(layer, seen):
    layer.register_forward_hook(lambda _, args, output: seen.append(output.shape[1]))


def before(layer, seen):
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))


def wrapped(layer, seen):
    own = layer.forward

    def forward(hidden, *args, **kwargs):
        seen.append(hidden.shape[1])
        return own(hidden, *args, **kwargs)

    layer.forward = forward


@pytest.mark.parametrize("words", [("tit",), ("titit", "tit")])
@pytest.mark.parametrize("reads", [hooked, before, wrapped])
def test_who_reads_a_layer_sees_the_full_stream_and_changes_no_bit(said, words, reads):
    model, inputs, seen = tiny("llava"), batch("llava", words), []
    with fv.drop(model, METHOD):
        alone = run(model, inputs)
        reads(family_for(model).layers[4], seen)
        read = run(model, inputs)
    assert said == [True, False]
    assert seen == [inputs["input_ids"].shape[1]]
    assert same(alone, read)


def test_hidden_states_that_are_asked_for_are_whole(said):
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with fv.drop(model, METHOD):
        alone, asked = run(model, inputs), run(model, inputs, output_hidden_states=True)
    assert said == [True, False]
    assert {states.shape[1] for states in asked.hidden_states} == {inputs["input_ids"].shape[1]}
    assert same(alone, asked)


@contextmanager
def hook_on_every_module(model):
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def loop_that_is_not_known(model):
    assert not Derived.decoders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(family_for(model)), "decoders", frozenset())
        yield


def test_others_read_between_the_layers_too(said):
    """A hook on every module, a loop over the layers that is not known, what a decoder adds, and gradients."""
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    for reads in (hook_on_every_module, loop_that_is_not_known):
        with fv.drop(model, METHOD), reads(model):
            run(model, inputs)
    with fv.drop(model, METHOD):
        model(**inputs, use_cache=True).logits.sum().backward()
    with fv.drop(adds := tiny("qwen3_vl"), METHOD):
        run(adds, batch("qwen3_vl", ["tit"]))
    assert said == [False] * 4


def test_rows_that_somebody_changed_on_the_way_are_told(said, monkeypatch):
    """A change between layers that nothing of the above tells of ends in an error, and in no answer."""
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    layers = family_for(model).layers
    calls = type(layers[4]).__call__

    def call(self, hidden, *args, **kwargs):
        return calls(self, hidden + 1 if self is layers[4] else hidden, *args, **kwargs)

    with fv.drop(model, METHOD):
        monkeypatch.setattr(type(layers[4]), "__call__", call)
        with pytest.raises(UnsupportedError, match="changes"):
            run(model, inputs)
