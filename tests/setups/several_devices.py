"""Decoder layers on several devices, without having any: fake tensors know their device, and refuse to mix.

Where accelerate spreads a model, the layer's own forward moves its input; foveate stands around that forward and must
not compute on the device of the layer before. That no value is there to read also shows that nothing waits for one.

Run by test_device_map.py in a process of its own, since the devices are made up for all of it.
"""

import copy
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import DynamicCache

import foveate as fv
from foveate._transformers import CACHE_NAMES, with_cache
from foveate.methods.visiondrop import VisionDrop
from tests.models import batch, tiny

DEVICES = tuple(f"elsewhere:{index // 2}" for index in range(6))
PAIRS = ((12, 3), (6, 2))
METHODS = {
    "v2drop": fv.V2Drop(layers=(2, 4), keep=(0.6, 0.5)),
    "visiondrop": VisionDrop(dominant=0, contextual=0, layer_list=(2, 4), image_token_list=PAIRS, reference=25),
    "visiondrop, kept ids": VisionDrop(
        dominant=0, contextual=0, layer_list=(2, 4), image_token_list=PAIRS, reference=25, positions="keep"
    ),
    "random": fv.Random(layers=(0, 3), keep=(0.6, 0.5)),
    "a cut cache": fv.V2Drop(layers=(2, 4), keep=(0.6, 0.5)) + fv.FinalKV(),
}


class Nowhere(FakeTensorMode):
    """Fakes that never ask for the device itself, not even for constants."""

    avoid_device_init = True


def aligned(original, device):
    """A forward behind accelerate's hook: what comes in goes to the layer's device, but for the cache."""

    def forward(*args, **kwargs):
        there = lambda one: one.to(device) if isinstance(one, torch.Tensor) else one  # noqa: E731
        cache = {name: kwargs.pop(name) for name in CACHE_NAMES if name in kwargs}
        return original(*tree_map(there, args), **tree_map(there, kwargs), **cache)

    return forward


def place(module, device):
    for child in module.modules():
        for name, weight in list(child.named_parameters(recurse=False)):
            setattr(child, name, torch.nn.Parameter(torch.empty_like(weight, device=device), requires_grad=False))
        for name, tensor in list(child.named_buffers(recurse=False)):
            setattr(child, name, torch.empty_like(tensor, device=device))
    module.forward = aligned(module.forward, device)


@contextmanager
def spread():
    """A tiny LLaVA whose decoder layers are on three devices, and the mode in which they can be."""
    model = copy.deepcopy(tiny("llava"))
    text = model.model.language_model
    with Nowhere(allow_non_fake_inputs=True) as mode:
        for layer, device in zip(text.layers, DEVICES, strict=True):
            place(layer, device)
        place(text.rotary_emb, DEVICES[0])
        place(text.norm, DEVICES[-1])
    yield model, mode


def prefilled(model, mode, words, cache):
    """A prefill whose decoder runs in the mode; the pictures are found before it, on real tensors."""
    text, inputs = model.model.language_model, batch("llava", words)
    if len(words) == 1:
        del inputs["attention_mask"]

    def begin(_, args, kwargs):
        mode.__enter__()
        return args, {**kwargs, "inputs_embeds": torch.empty_like(kwargs["inputs_embeds"], device=DEVICES[0])}

    handle = text.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        return model.model(**inputs, **with_cache(cache), use_cache=True)
    finally:
        mode.__exit__(None, None, None)
        handle.remove()


def prefill_and_steps(name):
    with spread() as (model, mode), fv.drop(model, METHODS[name]) as trace, torch.no_grad():
        cache = DynamicCache(config=model.config.get_text_config())
        out = prefilled(model, mode, ["titit"], cache)
        assert isinstance(out.last_hidden_state, FakeTensor)
        with mode:
            for _ in range(2):
                step = torch.empty(1, 1, 32, device=DEVICES[0])
                out = model.model.language_model(inputs_embeds=step, **with_cache(cache), use_cache=True)
    assert str(out.last_hidden_state.device) == DEVICES[-1]
    assert [str(layer.keys.device) for layer in cache.layers] == list(DEVICES)
    assert trace.stages[-1].after[0] < trace.vision_tokens[0]
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < lengths[0]
    print(name, "works", flush=True)


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("elsewhere")
    for one in METHODS:
        prefill_and_steps(one)
