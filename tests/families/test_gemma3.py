"""Gemma 3's tiny model, with a window shorter than its prompts."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import foveate as fv
from foveate._transformers import cache_in
from foveate.core.grid import coarser
from foveate.methods.resize import Resize
from foveate.methods.visiondrop import VisionDrop
from tests import models, oracle, tiny_others
from tests.tiny import IMAGE, TEXT, Tiny, squares

WINDOW = 20
LAYERS = ("sliding_attention", "full_attention", "sliding_attention") * 2


def config() -> Any:
    rope = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(LAYERS, (1e2, 1e4), strict=False)
    }
    text = {**TEXT, "head_dim": 12, "query_pre_attn_scalar": 9, "sliding_window": WINDOW, "rope_parameters": rope}
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**text, layer_types=list(LAYERS)),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, patch_size=7,
            image_size=70, vision_use_head=False,
        ),
        image_token_index=IMAGE, mm_tokens_per_image=25,
    )  # fmt: skip


def types(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are of images: they see one another both ways."""
    return {"token_type_ids": (ids == IMAGE).long()}


def window(layer: int) -> int | None:
    return WINDOW if LAYERS[layer] == "sliding_attention" else None


def sees(
    layer: int, columns: Tensor, picture: Tensor, prompt: int, counts: Tensor | None = None, window: Any = window
) -> Tensor:
    """Up to itself and all of its own picture, of that in local layers what is no further back than the window."""
    row, key, reach = columns[:, None], columns, window(layer)
    counts = columns if counts is None else counts
    seen = (key <= row) | ((picture[:, None] == picture) & (picture >= 0))
    return seen if reach is None else seen & (counts[:, None] - counts < reach)


TINY = Tiny(config, "Gemma3ForConditionalGeneration", squares, extra=types, from_start=True, sees=sees, window=window)


def other_config() -> Any:
    """Five local layers to a global one, as released."""
    known = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 9}
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**tiny_others.text(7, 3, 3, 45), **known),
        vision_config=tiny_others.siglip(2, 1, 42, 7), image_token_index=IMAGE, mm_tokens_per_image=4,
    )  # fmt: skip


def other_window(layer: int) -> int | None:
    return None if layer == 5 else 9


OTHER = replace(TINY, config=other_config, window=other_window, sees=partial(sees, window=other_window))


# What is special about it.


@contextmanager
def watched(model):
    """What every layer's attention is called with, call by call: (layer, arguments)."""
    seen, handles = [], []
    for index, layer in enumerate(model.model.language_model.layers):

        def note(module, args, kwargs, index=index):
            seen.append((index, kwargs))

        handles.append(layer.self_attn.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


METHOD = fv.Uniform(layers=(1, 4), keep=(0.5, 0.5))


def rows_left(ids, trace, layer):
    """Columns of the rows that a layer has, and the picture each belongs to."""
    picture = torch.where(
        ids == IMAGE, ((ids == IMAGE).int().diff(prepend=torch.zeros(1).int()) == 1).cumsum(0) - 1, -1
    )
    vision = (picture >= 0).nonzero()[:, 0]
    cuts = [stage.kept[0] for stage in trace.stages if stage.layer <= layer]
    kept = vision[cuts[-1]] if cuts else vision
    rows = torch.cat(((picture < 0).nonzero()[:, 0], kept)).sort().values
    return rows, picture[rows]


def test_images_see_both_ways_and_windows_count_the_columns_of_the_whole_prompt():
    model, inputs = models.tiny("gemma3"), models.batch("gemma3", ["titit"])
    with fv.drop(model, METHOD) as trace, watched(model) as calls, torch.no_grad():
        model(**inputs)
    both, reach = 0, []
    for layer, arguments in calls:
        rows, picture = rows_left(inputs["input_ids"][0], trace, layer)
        mask = arguments["attention_mask"][0, 0]
        assert torch.equal(mask, sees(layer, rows, picture, len(inputs["input_ids"][0])))
        both += int(mask.triu(1).sum())
        if window(layer):
            reach.append(int(mask[-1].sum()))
    assert both > 100
    assert reach[0] == WINDOW
    assert max(reach[1:]) < WINDOW  # of its columns some have left


def test_without_token_types_images_are_causal():
    model, inputs = models.tiny("gemma3"), models.batch("gemma3", ["tit"])
    del inputs["token_type_ids"]
    with fv.drop(model, METHOD), watched(model) as calls, torch.no_grad():
        model(**inputs)
    masks = [arguments["attention_mask"] for _, arguments in calls]
    assert all(mask is None or not mask.triu(1).any() for mask in masks)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_decoding_until_no_window_reaches_the_prompt(attention):
    model, inputs = models.tiny("gemma3", attention), models.batch("gemma3", ["tit"])
    with fv.drop(model, METHOD) as trace:
        out = models.generate(model, inputs, new_tokens=30)
    cuts = {stage.layer: stage.kept[0] for stage in trace.stages}
    generated = out.sequences[0, inputs["input_ids"].shape[1] : -1]
    with torch.no_grad():
        logits, _ = oracle.forward(model, inputs, generated, cuts)
    torch.testing.assert_close(torch.cat(out.logits), logits, atol=5e-5, rtol=1e-4)
    lengths = [layer.keys.shape[-2] for layer in cache_in(out).layers]
    assert lengths == [TINY.held(layer, rows[0] + 29) for layer, rows in enumerate(trace.kv_lengths)]


def test_each_type_of_layer_numbers_rows_anew_by_its_own_rope():
    model, inputs = models.tiny("gemma3"), models.batch("gemma3", ["titit"])
    method = VisionDrop(dominant=0, contextual=0, layer_list=(1,), image_token_list=((5, 2),), reference=25)
    with fv.drop(model, method), watched(model) as calls, torch.no_grad():
        model(**inputs)
    text = model.model.language_model
    for layer, arguments in calls[1:]:
        cos, sin = arguments["position_embeddings"]
        ids = torch.arange(cos.shape[1])[None]
        wanted = text.rotary_emb(cos, ids, text.config.layer_types[layer])
        assert torch.equal(cos, wanted[0])
        assert torch.equal(sin, wanted[1])
    assert not torch.equal(calls[1][1]["position_embeddings"][0], calls[2][1]["position_embeddings"][0])


@pytest.mark.parametrize("keep", [0.25, 0.5])
def test_a_smaller_picture_is_what_the_tower_and_the_projector_make_of_it(keep):
    core, pixels = models.tiny("gemma3").model, models.batch("gemma3", ["titit"])["pixel_values"]
    rows, columns = coarser((5, 5), 25 * keep)
    with torch.no_grad():
        with fv.drop(core, Resize(keep=keep)):
            got = core.get_image_features(pixels).pooler_output
        size = (rows * 14, columns * 14)
        small = torch.nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
        states = core.vision_tower(small, interpolate_pos_encoding=True).last_hidden_state
        means = states.view(2, rows, 2, columns, 2, -1).mean(dim=(2, 4)).flatten(1, 2)
        normed = core.multi_modal_projector.mm_soft_emb_norm(means)
        expected = normed @ core.multi_modal_projector.mm_input_projection_weight
    assert got.shape == (2, 25, 32)
    torch.testing.assert_close(got[:, : rows * columns], expected)
    assert not got[:, rows * columns :].any()
