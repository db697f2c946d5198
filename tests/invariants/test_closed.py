"""Invariant: where the host is not as it is known, one clear error and a restored model, never a wrong answer."""

import copy
import importlib
import inspect
import re

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

import foveate as fv
from foveate._transformers import NAMES, Cache, cache_in, with_cache
from foveate.core.patching import Patcher
from tests.engine.test_positions import Renumbering
from tests.invariants.test_restore import state
from tests.models import batch, generate, tiny

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5))
FAMILIES = ("llava", "qwen2_vl", "gemma3")


@pytest.fixture(params=FAMILIES)
def host(request):
    """A model of one's own to break, and its inputs."""
    model, inputs = copy.deepcopy(tiny(request.param)), batch(request.param, ["tit"])
    generate(model, inputs)  # transformers leaves hooks of its own at the first run
    return model, inputs


def told(says, model, inputs, inside=lambda model: None, method=METHOD, **arguments):
    """One clear error, and a model that is as before; `inside` is called in the open context, before the run."""
    before = state(model)
    with pytest.raises(fv.FoveateError, match=says), torch.no_grad():
        _run(model, inputs, inside, method, arguments)
    assert state(model) == before


def _run(model, inputs, inside, method, arguments):
    with fv.drop(model, method):
        inside(model)
        model(**inputs, **arguments)


def serves(model, inputs):
    """Whether a context opens on the model, and drops."""
    with fv.drop(model, METHOD) as trace:
        generate(model, inputs)
    assert max(trace.retention) < 1


# -- names of transformers -----------------------------------------------------------------------------------------


def without(kind, attribute):
    """A class whose instances have no such attribute, though they work otherwise."""

    class Without(kind):
        def __getattribute__(self, name):
            if name == attribute:
                raise AttributeError(name)
            return super().__getattribute__(name)

    return Without


def parts_of(name):
    """Of "m:Layer(4).window": the module m, Layer, whether an instance is meant, and window."""
    module, owner, call, attribute = re.match(r"([\w.]+):(\w+)(\(\d*\))?(?:\.(\w+))?", name).groups()
    return importlib.import_module(module), owner, call is not None, attribute


def take_away(name, monkeypatch):
    """Let a name be gone from transformers."""
    home, owner, call, attribute = parts_of(name)
    if attribute is None:
        monkeypatch.delattr(home, owner)
    elif call:
        monkeypatch.setattr(home, owner, without(getattr(home, owner), attribute))
    else:
        holder = getattr(home, owner)
        kinds = (holder if isinstance(holder, type) else type(holder)).__mro__
        monkeypatch.delattr(next(kind for kind in kinds if attribute in vars(kind)), attribute)


INHERITED = "transformers.cache_utils:DynamicLayer.reset"
"""Its base has one too, which is called in its place; `PrunedLayer` empties itself."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - {INHERITED}))
def test_a_name_that_is_gone_is_told_at_opening(name, monkeypatch):
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with monkeypatch.context() as patched:
        take_away(name, patched)
        told(rf"has no {parts_of(name)[1]}|has no DynamicCache", model, inputs)
    serves(model, inputs)


TAKES = [name for name in NAMES if re.search(r"\.\w+\(.+\)$", name)]


@pytest.mark.parametrize("name", TAKES)
def test_a_function_that_takes_other_arguments_is_told_at_opening(name, monkeypatch):
    home, owner, _, attribute = parts_of(name)
    monkeypatch.setattr(getattr(home, owner), attribute, lambda self, other: None)
    told(rf"has another {owner}\.{attribute}: it takes \(other\)", tiny("llava"), batch("llava", ["tit"]))


# -- hooks ---------------------------------------------------------------------------------------------------------


def test_each_hook_that_is_lost_is_told(host, monkeypatch):
    model, inputs = host
    patchers = []
    monkeypatch.setattr(Patcher, "__init__", lambda self, init=Patcher.__init__: (init(self), patchers.append(self))[0])
    with fv.drop(model, METHOD):
        changes = len(patchers[0]._changes)
    assert changes >= 8 + len(model.get_decoder().layers)

    def take_back(number):
        one = Patcher()
        one._changes.append(patchers[0]._changes[number])
        one.restore()

    for number in range(changes):
        patchers.clear()
        told(
            "no longer belongs to foveate|in another way|did not report",
            model,
            inputs,
            lambda _, number=number: take_back(number),
        )


def test_a_decoder_that_is_called_past_its_hooks_is_told(host, monkeypatch):
    model, inputs = host
    monkeypatch.setattr(
        type(model.get_decoder()), "__call__", lambda self, *args, **kwargs: self.forward(*args, **kwargs)
    )
    told("calls its parts in another way", model, inputs)


def test_wrappers_of_others_are_no_fault(host):
    model, inputs = host
    for layer in model.get_decoder().layers:
        original = layer.forward
        layer.forward = lambda *args, original=original, **kwargs: original(*args, **kwargs)
    with torch.no_grad(), fv.drop(model, METHOD) as trace:
        for layer in model.get_decoder().layers:
            around = layer.forward
            layer.forward = lambda *args, around=around, **kwargs: around(*args, **kwargs)
        output = model(**inputs, use_cache=False)
    assert max(trace.retention) < 1
    assert cache_in(output) is None


# -- other names in the model's own code ---------------------------------------------------------------------------


CACHE = next(iter(with_cache(None)))


def renames(kind, old, monkeypatch):
    """Let a module's class take an argument as `other`, and its callers hand it in so."""
    forward, call = kind.forward, nn.Module.__call__
    first = "hidden_states" if "hidden_states" in inspect.signature(forward).parameters else "inputs_embeds"

    def calls(self, *args, **kwargs):
        if old in kwargs:
            kwargs["other"] = kwargs.pop(old)
        return call(self, *args, **kwargs)

    def takes(self, *args, other=None, **kwargs):
        return forward(self, *args, **{**kwargs, old: other})

    parameters = dict(inspect.signature(forward).parameters)
    assert first in parameters
    parameters[old] = parameters[old].replace(name="other")
    takes.__signature__ = inspect.Signature(list(parameters.values()))
    monkeypatch.setattr(kind, "forward", takes)
    monkeypatch.setattr(kind, "__call__", calls)


@pytest.mark.parametrize("old", ["attention_mask", "position_embeddings", CACHE])
def test_a_layers_argument_by_another_name_is_told(host, old, monkeypatch):
    model, inputs = host
    kind = type(model.get_decoder().layers[0])
    with monkeypatch.context() as patched:
        renames(kind, old, patched)
        told(f"has a {kind.__name__} that takes no", model, inputs)
    with monkeypatch.context() as patched:
        told("calls its layers|passes its layers", model, inputs, lambda model: renames(kind, old, patched))
    serves(model, inputs)


@pytest.mark.parametrize("old", ["inputs_embeds", "attention_mask", CACHE])
def test_a_decoders_argument_by_another_name_is_told(host, old, monkeypatch):
    model, inputs = host
    kind = type(model.get_decoder())
    with monkeypatch.context() as patched:
        renames(kind, old, patched)
        told(f"has a {kind.__name__} that takes no", model, inputs)
    serves(model, inputs)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("get_image_features", "encodes pixel_values in another way"),
        ("get_placeholder_mask", "did not report their positions"),
    ],
)
def test_pictures_that_come_by_another_function_are_told(name, says, monkeypatch):
    model, inputs = copy.deepcopy(tiny("llava")), batch("llava", ["tit"])
    generate(model, inputs)
    core = model.model
    around = type(core).forward

    def past(self, *args, **kwargs):
        """Calls the class's own function, past what the context has put on this object."""
        with monkeypatch.context() as own:
            own.setattr(self, name, getattr(type(self), name).__get__(self))
            return around(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(type(core), "forward", past)
        told(f"{says}|no longer belongs to foveate", model, inputs)
    serves(model, inputs)


def test_positions_that_are_not_handed_in_are_told(monkeypatch):
    model, inputs = copy.deepcopy(tiny("llava")), batch("llava", ["tit"])
    generate(model, inputs)
    kind = type(model.get_decoder().rotary_emb)
    forward = kind.forward
    with monkeypatch.context() as patched:
        patched.setattr(kind, "forward", lambda self, x, places: forward(self, x, places))
        patched.setattr(
            kind, "__call__", lambda self, x, position_ids: nn.Module.__call__(self, x, places=position_ids)
        )
        told("passes the decoder's rotary_emb no position_ids", model, inputs, method=Renumbering())
    serves(model, inputs)


def meddles(model, meddle):
    """Let `meddle(index, kwargs)` change what each layer is handed."""
    for index, layer in enumerate(model.get_decoder().layers):

        def before(_, args, kwargs, index=index):
            return args, {**kwargs, **meddle(index, kwargs)}

        layer.register_forward_pre_hook(before, with_kwargs=True)


@pytest.mark.parametrize("by", [-1, 1])
def test_masks_of_another_width_are_told(by):
    model, inputs = copy.deepcopy(tiny("llava", "eager")), batch("llava", ["tit"])
    generate(model, inputs)

    def meddle(index, kwargs):
        if index == 0:
            return {}
        return {"attention_mask": nn.functional.pad(kwargs["attention_mask"], (by, 0))}

    meddles(model, meddle)
    told("makes masks of .* columns where the sequence has", model, inputs)


def test_a_tensor_of_columns_that_is_not_known_is_told(host, monkeypatch):
    model, inputs = host
    kind = type(model.get_decoder().layers[0])
    forward = kind.forward

    def gated(self, *args, gates=None, **kwargs):
        return forward(self, *args, **kwargs)

    gates = inspect.Parameter("gates", inspect.Parameter.KEYWORD_ONLY)
    parameters = [one for one in inspect.signature(forward).parameters.values() if one.kind is not one.VAR_KEYWORD]
    gated.__signature__ = inspect.Signature([*parameters, gates])
    monkeypatch.setattr(kind, "forward", gated)
    columns = inputs["input_ids"].shape[1]
    meddles(model, lambda index, kwargs: {"gates": torch.ones(1, columns)})
    told("passes its layers gates", model, inputs)


# -- caches --------------------------------------------------------------------------------------------------------


class Own(DynamicCache):
    """Stores in a way of its own."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class Foreign:
    """Answers as a cache does, and is none."""

    def __init__(self, cache):
        self._cache = cache

    def __getattr__(self, name):
        return getattr(self._cache, name)


def test_caches_that_are_not_known_are_told(host):
    model, inputs = host
    config = model.config.get_text_config()
    for cache, says in (
        (Own(config=config), "Own"),
        (Foreign(DynamicCache(config=config)), "Foreign"),
        (StaticCache(config=config, max_cache_len=256), "Use a DynamicCache"),
    ):
        told(says, model, inputs, **with_cache(cache))


def test_a_cache_that_the_model_makes_itself_is_looked_at_too(host, monkeypatch):
    model, inputs = host
    home = importlib.import_module(type(model.get_decoder()).__module__)
    with monkeypatch.context() as patched:
        patched.setattr(home, "DynamicCache", Own)
        told("Own", model, inputs)
    serves(model, inputs)


def test_a_layer_that_gets_another_cache_is_told(host):
    model, inputs = host
    other = DynamicCache()
    meddles(model, lambda index, kwargs: {CACHE: other} if index == 2 else {})
    told("another cache", model, inputs)


def test_layers_that_get_no_cache_though_the_model_caches_are_told(host):
    model, inputs = host
    meddles(model, lambda index, kwargs: {CACHE: None})
    told("no cache under a name that foveate knows", model, inputs, use_cache=True)
    told("another cache", model, inputs)


def test_a_model_that_answers_with_another_cache_is_told(host):
    model, inputs = host
    model.get_decoder().register_forward_hook(lambda _, args, output: setattr(output, CACHE, DynamicCache()))
    told("another cache", model, inputs)


@pytest.mark.parametrize("stored", [slice(0), slice(-1)], ids=["nothing", "all but one"])
def test_rows_that_do_not_reach_the_cache_are_told(host, stored, monkeypatch):
    model, inputs = host
    update = Cache.update

    def forgets(self, key_states, value_states, layer_idx, *args, **kwargs):
        if layer_idx == 2:
            if stored == slice(0):
                return key_states, value_states
            key_states, value_states = key_states[..., stored, :], value_states[..., stored, :]
        return update(self, key_states, value_states, layer_idx, *args, **kwargs)

    monkeypatch.setattr(Cache, "update", forgets)
    told("cache", model, inputs)


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "says"),
    [
        ((0, 1, 3, 4, 5), "ran decoder layer 3 where layer 2 was due"),
        ((0, 1, 2, 2, 3, 4, 5), "ran decoder layer 2 where layer 3 was due"),
        ((0, 2, 1, 3, 4, 5), "ran decoder layer 2 where layer 1 was due"),
        ((0, 1, 2, 3), "Tokens were dropped in 4 of 6 decoder layers"),
    ],
    ids=["bypassed", "twice", "out of order", "the last left out"],
)
def test_layers_out_of_turn_are_told(host, order, says):
    model, inputs = host
    text = model.get_decoder()
    layers = text.layers
    assert len(layers) == 6
    all_of_them = list(layers)

    class Ordered(nn.ModuleList):
        """Gives its modules in another order than it has them."""

        def __getitem__(self, place):
            return [all_of_them[index] for index in order][place]

        def __iter__(self):
            return iter(self[:])

    def reorder(_):
        layers.__class__ = Ordered
        text.register_forward_hook(put_back, always_call=True)

    def put_back(*_):
        layers.__class__ = nn.ModuleList

    with pytest.raises(fv.FoveateError, match=says):
        _run(model, inputs, reorder, METHOD, {})
    serves(model, inputs)


def test_layers_that_share_a_module_are_told_at_opening(host):
    model, inputs = host
    layers = model.get_decoder().layers
    layers[3] = layers[2]
    told("are the same module", model, inputs)
