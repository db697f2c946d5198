"""Prompts at the edge of what there is: pictures first, last, alone, of one token, shrunk to one, or none."""

from functools import cache

import pytest
import torch

import foveate as fv
from tests import oracle
from tests.invariants import facts
from tests.invariants.alone import left
from tests.invariants.references import reference
from tests.invariants.settings import EXAMPLES, FIRST, SMALLEST, part
from tests.invariants.test_oracle import recomputed, recomputes
from tests.models import IMAGE, TINY, batch, features, generate, made_of, tiny

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
NOTHING = torch.tensor([], dtype=torch.long)


def checked(name, family, inputs, method, model):
    """The trace and the last logits of one prefill that agrees with the independent recompute."""
    with fv.drop(model, method) as trace, torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    assert torch.isfinite(logits).all()
    if recomputed(name, family) and any(trace.vision_tokens):
        told = reference(method, family, model, inputs, trace)
        with torch.no_grad():
            expected, kept = oracle.forward(model, inputs, NOTHING, **told)
        torch.testing.assert_close(logits, expected, **CLOSE)
        kept = {layer: tokens for layer, tokens in kept.items() if tokens}  # none without a picture
        assert kept == {stage.layer: stage.origin[0].tolist() for stage in trace.stages if stage.where == "layer"}
    return trace, logits[0]


@pytest.mark.parametrize(("name", "family"), part(FIRST, 0, of=3))
def test_pictures_first_last_alone_and_none(name, family):
    """Each against the recompute, and all together as a batch."""
    model, method, words = tiny(family), EXAMPLES[name], ("it", "ti", "i", "ttt")
    inputs = batch(family, words, start=False)
    if facts.reads_key_norms(method) and not TINY[family].mrope:  # these depend on positions: as generate gives them
        first = int(family == "paligemma")
        inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + first
    with fv.drop(model, method) as together, torch.no_grad():
        logits = model(**inputs).logits[:, -1]
    for index, word in enumerate(words):
        one = batch(family, [word], start=False)
        trace, single = checked(name, family, one, method, model)
        torch.testing.assert_close(logits[index], single, **CLOSE)
        assert left(together, index) == left(trace, 0)
        if word == "ttt":
            with torch.no_grad():
                assert torch.equal(model(**one).logits[0, -1], single)
            assert trace.vision_tokens == [0]
            assert trace.stages == []


@cache
def smallest(family):
    """A model whose pictures are one cell of its grid, and a prompt with such a picture."""
    known, rng = TINY[family], torch.Generator().manual_seed(0)
    config = known.config()
    (picture,), vision = known.pictures(config, 1, rng), config.vision_config
    pixels = picture["pixel_values"]
    if "image_grid_thw" in picture:
        side = vision.spatial_merge_size
        picture = {"pixel_values": pixels[: side * side], "image_grid_thw": torch.tensor([[1, side, side]])}
    elif "image_position_ids" in picture:
        side = vision.pooling_kernel_size
        picture["image_position_ids"][(picture["image_position_ids"] >= side).any(dim=-1)] = -1
    else:
        side = _cell(config)
        vision.image_size = [side, side] if isinstance(vision.image_size, list) else side
        if hasattr(config, "mm_tokens_per_image"):
            config.mm_tokens_per_image = 1
        pixels = pixels[..., :side, :side]
        if hasattr(config, "image_grid_pinpoints"):
            config.image_grid_pinpoints = [[side, side]]
            pixels = pixels[:, :2]  # the whole picture, and its one tile
        elif pixels.dim() == 5:
            pixels = pixels[:, :1]
        picture["pixel_values"] = pixels if pixels.dim() == 5 else pixels[:1]
        if "image_sizes" in picture:
            picture["image_sizes"] = torch.tensor([[side, side]])
    model = made_of(family, config)
    length = sum(map(len, features(model, picture)))
    row = known.ids(picture, length)
    row = row[(row != IMAGE) | ((row == IMAGE).cumsum(dim=0) <= length)]  # some know one count for all tiles
    ids = torch.cat((torch.tensor([1, 5, 6]), row, torch.tensor([7, 8])))[None]
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture, **known.extra(ids)}


def _cell(config):
    """Pixels a side of what becomes one token."""
    patch = config.vision_config.patch_size
    patch = patch[0] if isinstance(patch, list) else patch
    merged = getattr(config, "scale_factor", None) or getattr(config, "spatial_merge_size", None)
    return patch * int(merged or 1 / getattr(config, "downsample_ratio", 1))


# Not Mistral 3, whose features transformers squeezes out of shape where there is one.
@pytest.mark.parametrize(("name", "family"), [pair for pair in part(FIRST, 1, of=3) if pair[1] != "mistral3"])
def test_a_grid_of_one_cell(name, family):
    model, inputs = smallest(family)
    trace, _ = checked(name, family, inputs, EXAMPLES[name], model)
    (count,) = trace.vision_tokens
    assert count == (
        3 if hasattr(model.config, "image_grid_pinpoints") else 1
    )  # the whole picture, its tile and a newline
    assert all(1 <= stage.after[0] <= count for stage in trace.stages)


@pytest.mark.parametrize(("name", "family"), [pair for pair in part(FIRST, 2, of=3) if pair[0] in SMALLEST])
def test_a_picture_that_shrinks_to_one_token(name, family):
    model, inputs, method = tiny(family), batch(family, ["tit"]), SMALLEST[name]
    trace, _ = checked(name, family, inputs, method, model)
    assert trace.vision_tokens[0] > 3
    if facts.cuts(method):
        assert trace.stages[-1].after == (1,)
    else:  # one of each tile, and newlines
        tiles = inputs["pixel_values"].shape[:-3].numel()
        assert trace.stages[-1].after[0] <= (1 if tiles == 1 else 2 * tiles)
    with fv.drop(model, method):
        cached = generate(model, inputs, new_tokens=2)
        if recomputes(method):
            plain = generate(model, inputs, new_tokens=2, use_cache=False)
            torch.testing.assert_close(torch.cat(cached.logits), torch.cat(plain.logits), **CLOSE)
