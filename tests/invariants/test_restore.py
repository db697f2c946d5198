"""Invariant 2: after the context the model is exactly as before."""

import copy
import pickle
import warnings

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.engine.doors import drop_or_not
from tests.invariants.settings import KINDS
from tests.models import FAMILIES, TINY, batch, generate, given, tiny

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3))


def state(model):
    """Everything attaching could leave behind: attributes and hooks of every module."""
    attributes = {}
    for name, module in model.named_modules():
        hooks = {key: dict(value) for key, value in vars(module).items() if "hooks" in key and isinstance(value, dict)}
        own = {key: value for key, value in vars(module).items() if not key.startswith("_") and callable(value)}
        attributes[name] = (type(module), sorted(vars(module)), hooks, own)
    return attributes


def end_normally(model, inputs):
    with fv.drop(model, METHOD):
        generate(model, inputs)


def end_by(error):
    def run(model, inputs):
        with fv.drop(model, METHOD):
            generate(model, inputs)
            raise error

    return run


def end_in_a_layer(model, inputs):
    def fail(*_):
        raise FloatingPointError

    handle = model.get_decoder().layers[4].mlp.register_forward_pre_hook(fail)
    try:
        end_normally(model, inputs)
    finally:
        handle.remove()


ENDS = [end_normally, end_by(ValueError), end_by(KeyboardInterrupt), end_in_a_layer]


@pytest.mark.parametrize(
    ("family", "end"),
    [
        (family, end)
        for at, family in enumerate(FAMILIES)
        for turn, end in enumerate(ENDS)
        if family in KINDS or at % len(ENDS) == turn
    ],
)
def test_the_model_is_as_before(family, end):
    model, inputs = tiny(family), batch(family, ["tit"])
    plain, before = generate(model, inputs), state(model)
    if end is end_normally:
        end(model, inputs)
    else:
        with pytest.raises((ValueError, KeyboardInterrupt, FloatingPointError)):
            end(model, inputs)
    assert state(model) == before
    after = generate(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(after.logits, plain.logits, strict=True))


def test_a_method_of_ones_own_forward_comes_back():
    model = copy.deepcopy(tiny("llava"))
    layer = model.model.language_model.layers[2]
    original = layer.forward
    layer.forward = lambda *args, **kwargs: original(*args, **kwargs)
    mine = layer.forward
    with fv.drop(model, METHOD):
        assert layer.forward is not mine
    assert layer.__dict__["forward"] is mine


DEEP = fv.V2Drop(layers=(3, 17, 22), keep=(0.5, 0.3, 0.0))


def test_attaching_that_fails_leaves_nothing():
    model = tiny("llava")
    before = state(model)
    with pytest.raises(fv.SettingError, match="decoder has layers 0 to 5"), fv.drop(model, DEEP):
        pass
    assert state(model) == before


def test_apply_and_remove():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    before = state(model)
    trace = fv.apply(model, METHOD)
    generate(model, inputs)
    assert trace.retention[0] < 0.6
    fv.remove(model)
    assert state(model) == before
    with pytest.raises(fv.SessionError, match="Nothing to remove"):
        fv.remove(model)


def test_contexts_do_not_nest():
    model = tiny("llava")
    with fv.drop(model, METHOD):
        with pytest.raises(fv.SessionError, match="cannot be nested"), fv.drop(model, fv.Random()):
            pass
        with pytest.raises(fv.SessionError, match="cannot be nested"):
            fv.apply(model, METHOD)
    with fv.drop(model, METHOD):  # the first one did end
        pass


def closing(model, run, *, by_hand=False):
    """What is said when a context closes in which `run` ran, and from which file."""
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        if by_hand:
            fv.apply(model, METHOD)
            run()
            fv.remove(model)
        else:
            with fv.drop(model, METHOD):
                run()
    return [(str(one.message).split(":")[0], one.filename) for one in noted]


NOTHING = [("Nothing was dropped", __file__)]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_context_in_which_nothing_ran_says_so_at_the_users_line(by_hand):
    model = tiny("llava")
    assert closing(model, lambda: None, by_hand=by_hand) == NOTHING
    assert closing(model, lambda: generate(tiny("qwen2_vl"), batch("qwen2_vl", ["tit"])), by_hand=by_hand) == NOTHING
    assert closing(model, lambda: generate(model, batch("llava", ["tit"])), by_hand=by_hand) == []
    assert closing(model, lambda: generate(model, batch("llava", ["t"])), by_hand=by_hand) == []
    with pytest.raises(ValueError, match="mine"), fv.drop(model, METHOD):
        raise ValueError("mine")


@pytest.mark.parametrize(("before", "said"), [(None, NOTHING), (METHOD, [])])
def test_a_turn_on_a_cache_that_began_outside_says_so_and_on_one_that_was_cut_does_not(before, said):
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    turn = {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.ones(1, inputs["input_ids"].shape[1] + 2)}
    with torch.no_grad():
        with drop_or_not(model, before):
            turn |= with_cache(cache_in(model(**inputs, use_cache=True)))
        assert closing(model, lambda: model(**turn)) == said


def test_two_models_drop_side_by_side():
    first, second = tiny("llava"), tiny("qwen2_vl")
    with fv.drop(first, METHOD) as one, fv.drop(second, METHOD) as two:
        generate(first, batch("llava", ["tit"]))
        generate(second, batch("qwen2_vl", ["titi"]))
    assert (one.vision_tokens, two.vision_tokens) == ([25], [15])


def test_what_is_no_method_is_refused():
    with pytest.raises(fv.SettingError, match="got 192"), fv.drop(tiny("llava"), 192):
        pass


def test_a_model_of_no_family_is_refused():
    with pytest.raises(fv.UnsupportedError, match=r"model_type None \(Linear\).*no vision-language model"):
        fv.apply(torch.nn.Linear(1, 1), METHOD)


def test_a_copy_of_a_model_inside_a_context_is_refused():
    """Its layers would run the original's weights."""
    model = tiny("llava")
    with fv.drop(model, METHOD):
        with pytest.raises(fv.SessionError, match="cannot be copied or pickled"):
            copy.deepcopy(model)
        with pytest.raises(fv.SessionError, match="cannot be copied or pickled"):
            pickle.dumps(model)
    copy.deepcopy(model)


@pytest.mark.parametrize("family", [one for one in KINDS if not TINY[one].recurrent])
def test_assisted_decoding_copies_no_weights(family, monkeypatch):
    """It copies what `generate` encoded, which carries our tags: they must not carry the model."""
    copied = []
    original = torch.nn.Parameter.__deepcopy__
    model, inputs = tiny(family), batch(family, ["tit"])
    helper = copy.deepcopy(model)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", lambda self, memo: copied.append(1) or original(self, memo))
    with fv.drop(model, METHOD):
        assisted = generate(model, inputs, assistant_model=helper)
        greedy = generate(model, inputs)
    assert not copied
    assert torch.equal(assisted.sequences, greedy.sequences)


@pytest.mark.parametrize("family", FAMILIES)
def test_features_asked_for_as_a_tuple_come_as_one(family):
    model, inputs = tiny(family), batch(family, ["ti"])
    with torch.no_grad():
        plain = model.model.get_image_features(**given(model, inputs), return_dict=False)
        with fv.drop(model, METHOD):
            same = model.model.get_image_features(**given(model, inputs), return_dict=False)
    assert type(same) is type(plain)
