"""Qwen2.5-VL's tiny model, and its windows: scores and keys stand for the tokens they are of."""

import copy
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

import foveate as fv
from foveate.registry import family_for
from tests import models, tiny_others
from tests.families.qwens import qwen, rope
from tests.families.shown import KEYS, PAID, Shown
from tests.tiny import TEXT, Picture, after_start, qwen_frames


def config() -> Any:
    return transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "num_key_value_heads": 1, "rope_parameters": rope(2, 1, 1)},
        vision_config={
            "depth": 4, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "fullatt_block_indexes": [0, 2], "window_size": 56,
        },
        **tiny_others.QWEN,
    )  # fmt: skip


def videos(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of several frame rates: their temporal patches are 3 and 1 positions apart."""
    seconds = torch.tensor([0.75, 0.3])[torch.arange(count) % 2]
    frames = zip(qwen_frames(config, count, rng), seconds.split(1), strict=True)
    return [{**video, "second_per_grid_ts": seconds} for video, seconds in frames]


TINY = replace(qwen(config, "Qwen2_5_VL", after_start), videos=videos)


def other_config() -> Any:
    """Windows of 2 x 2 tokens, a patch each, and one block of four that looks at all."""
    return transformers.Qwen2_5_VLConfig(
        text_config=tiny_others.text(5, 2, 2, 24, rope_parameters=tiny_others.mrope(2, 3, 1)),
        vision_config={
            "depth": 4, "hidden_size": 8, "out_hidden_size": 24, "num_heads": 1, "intermediate_size": 20,
            "fullatt_block_indexes": [1], "window_size": 12, "patch_size": 6, "spatial_merge_size": 1,
            "tokens_per_second": 4,
        },
        **tiny_others.QWEN,
    )  # fmt: skip


def other_videos(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    return [{**one, "second_per_grid_ts": torch.tensor([0.5])} for one in tiny_others.clips(config, count, rng)]


OTHER = replace(TINY, config=other_config, pictures=tiny_others.grids, videos=other_videos)

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
GRIDS = {"images": [[1, 4, 6], [1, 8, 10]], "videos": [[3, 4, 6], [2, 6, 6]]}


def shown(model, modality, given):
    reducer, core = Shown(), model.model
    with torch.no_grad():
        family_for(model).encode(
            lambda **new: getattr(core, f"get_{modality}_features")(**{**given, **new}), modality, given, reducer
        )
    return reducer.views


def given(model, modality, grids):
    grids = torch.tensor(grids)
    pixels = torch.randn(int(grids.prod(-1).sum()), 1176, generator=torch.Generator().manual_seed(0))
    name = "pixel_values" + ("_videos" if modality == "video" else "")
    return {name: pixels, f"{modality}_grid_thw": grids}


def raster_tower(visual, patches, grid):
    """One image through the tower with its patches as they come, windows being nothing but who sees whom.

    Returns the features, and of each block the attention each token receives and its key before RoPE.
    """
    t, h, w = grid
    frame, y, x = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
    blocks = [one.view(t, h // 2, 2, w // 2, 2).transpose(2, 3).flatten() for one in (frame, y, x)]
    frame, y, x = blocks  # tokens in raster order, the 2 x 2 patches of each behind one another
    together = frame[:, None] == frame
    near = together & (y[:, None] // 4 == y // 4) & (x[:, None] // 4 == x // 4)  # a window of 56 is 4 x 4 patches
    hidden = visual.patch_embed(patches)
    places = torch.stack((y, x), dim=-1)
    if len(inspect.signature(visual.rotary_pos_emb.forward).parameters) > 1:
        cos, sin = visual.rotary_pos_emb(hidden, places)
    else:  # transformers 5.16
        angles = visual.rotary_pos_emb(places).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
    received, keys = [], []
    for index, block in enumerate(visual.blocks):
        attention = block.attn
        q, k, v = attention.qkv(block.norm1(hidden)).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
        keys.append(k.mean(1).view(-1, 4, k.shape[-1]).mean(1))
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        logits = torch.einsum("qhd,khd->hqk", q, k) * attention.scaling
        sees = together if index in (0, 2) else near
        weights = logits.masked_fill(~sees, float("-inf")).softmax(-1)
        received.append((weights.mean(0).sum(0) / (h * w)).view(-1, 4).mean(1))
        hidden = hidden + attention.proj(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden), received, keys


@pytest.mark.parametrize(("modality", "grids"), [("image", GRIDS["images"]), ("video", GRIDS["videos"])])
def test_scores_and_keys_are_those_of_the_tokens_in_raster_order(modality, grids):
    model = models.tiny("qwen2_5_vl")
    inputs = given(model, modality, grids)
    views = shown(model, modality, inputs)
    pixels = next(iter(inputs.values())).split([t * h * w for t, h, w in grids])
    for view, patches, grid in zip(views, pixels, grids, strict=True):
        with torch.no_grad():
            features, received, keys = raster_tower(model.model.visual, patches, grid)
        torch.testing.assert_close(view.features, features, **CLOSE)
        torch.testing.assert_close(view.read(PAID)[:, 0], received[2], **CLOSE)
        torch.testing.assert_close(view.read(KEYS), keys[2], **CLOSE)
        assert (received[2] - received[3]).abs().max() > 1e-4  # the last block sees windows alone
        order = family_for(model).token_order(torch.tensor([grid]))
        assert order.tolist() != list(range(len(order)))  # windows do permute


def test_a_tower_of_nothing_but_windows_ranks_nothing():
    blind = copy.deepcopy(models.tiny("qwen2_5_vl"))
    blind.model.visual.fullatt_block_indexes = [7, 15]
    with pytest.raises(fv.UnsupportedError, match="names"):
        shown(blind, "image", given(blind, "image", GRIDS["images"]))


def test_the_cost_of_windows_is_asked_for_by_grid():
    with pytest.raises(fv.SettingError, match="grids="):
        fv.cost(config(), text_tokens=5, vision_tokens=24)
    square = fv.cost(config(), text_tokens=5, vision_tokens=24, grids=[[(4, 6)]])
    strip = fv.cost(config(), text_tokens=5, vision_tokens=24, grids=[[(1, 24)]])
    assert square.tower_flops > strip.tower_flops  # 2 x 2 windows against 1 x 2
    assert square.projector_flops == strip.projector_flops
