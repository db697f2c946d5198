"""Prompts at the edge of what there is: pictures first, last, alone, of one token, shrunk to one, or none."""

from functools import cache

import pytest
import torch

import foveate as fv
from tests import oracle
from tests.invariants.references import reference
from tests.invariants.settings import EXAMPLES, SMALLEST
from tests.models import FAMILIES, TINY, batch, generate, made_of, tiny

SETTINGS = {name: example for name, example in EXAMPLES.items() if name.endswith("-0")}
CLOSE = {"atol": 5e-5, "rtol": 1e-4}
NOTHING = torch.tensor([], dtype=torch.long)


def recomputed(model, family, inputs, method):
    """The trace of one prefill that agrees with the independent recompute."""
    with fv.drop(model, method) as trace, torch.no_grad():
        logits = model(**inputs).logits[0, -1:]
    if (method.stage, family) == ("pixels", "qwen3_vl"):
        assert torch.isfinite(logits).all()  # tests/methods/test_resize.py recomputes its deepstack features
        return trace
    told = reference(method, family, model, inputs, trace)
    with torch.no_grad():
        expected, kept = oracle.forward(model, inputs, NOTHING, **told)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert kept == {stage.layer: stage.origin[0].tolist() for stage in trace.stages if stage.where == "layer"}
    return trace


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("word", ["it", "ti", "i"])
def test_a_picture_first_or_last_or_alone(word, name, family):
    inputs = batch(family, [word], start=False)
    trace = recomputed(tiny(family), family, inputs, SETTINGS[name])
    if not SETTINGS[name].reads_text:  # without text after a picture MustDrop rates no token
        assert trace.retention[0] < 1


@cache
def smallest(family):
    """A model whose pictures are one cell of its grid, and a prompt with such a picture."""
    known, rng = TINY[family], torch.Generator().manual_seed(0)
    config = known.config()
    (picture,), vision = known.pictures(config, 1, rng), config.vision_config
    if "image_grid_thw" in picture:
        side = vision.spatial_merge_size
        pixels = torch.randn(side * side, picture["pixel_values"].shape[1], generator=rng)
        picture = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, side, side]])}
    else:
        vision.image_size = side = vision.patch_size
        config.mm_tokens_per_image = 1  # of Gemma 3
        picture["pixel_values"] = torch.randn(*picture["pixel_values"].shape[:-2], side, side, generator=rng)
        if "image_sizes" in picture:
            config.image_grid_pinpoints, picture["image_sizes"] = [[side, side]], torch.tensor([[side, side]])
            picture["pixel_values"] = picture["pixel_values"][:, :2]  # the whole picture, and its one tile
    model = made_of(family, config)
    with torch.no_grad():
        length = sum(len(one) for one in model.model.get_image_features(**picture).pooler_output)
    ids = torch.cat((torch.tensor([1, 5, 6]), known.ids(picture, length), torch.tensor([7, 8])))[None]
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), **picture, **known.extra(ids)}


# Gemma 4 pools patches in blocks that its processor chooses: a picture has at least its own least number of tokens.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma4"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_grid_of_one_cell(name, family):
    model, inputs = smallest(family)
    trace = recomputed(model, family, inputs, SETTINGS[name])
    (count,) = trace.vision_tokens
    tiled = ("llava_onevision", "llava_next", "llava_next_video")
    assert count == (3 if family in tiled else 1)  # the whole picture, its tile and a newline
    assert all(1 <= stage.after[0] <= count for stage in trace.stages)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SMALLEST)
def test_a_picture_that_shrinks_to_one_token(name, family):
    model, inputs, method = tiny(family), batch(family, ["tit"]), SMALLEST[name]
    trace = recomputed(model, family, inputs, method)
    assert trace.vision_tokens[0] > 3
    if method.cuts():
        assert trace.stages[-1].after == (1,)
    else:  # one of each tile, and newlines
        tiles = inputs["pixel_values"].shape[:-3].numel()
        assert trace.stages[-1].after[0] <= (1 if tiles == 1 else 2 * tiles)
    with fv.drop(model, method):
        cached = generate(model, inputs, new_tokens=3)
        if not method.reads_text:
            plain = generate(model, inputs, new_tokens=3, use_cache=False)
            torch.testing.assert_close(torch.cat(cached.logits), torch.cat(plain.logits), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_no_picture_at_all(name, family):
    model, inputs = tiny(family), batch(family, ["t", "ttt"])
    plain = generate(model, inputs, new_tokens=2)
    with fv.drop(model, SETTINGS[name]) as trace:
        same = generate(model, inputs, new_tokens=2)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, plain.logits, strict=True))
    assert trace.vision_tokens == [0, 0]
    assert trace.stages == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_of_edges_is_its_samples_alone(name, family):
    model, method, words = tiny(family), SETTINGS[name], ("it", "ti", "ttt", "i")
    with torch.no_grad():
        with fv.drop(model, method) as together:
            logits = model(**batch(family, words, start=False)).logits[:, -1]
        for index, word in enumerate(words):
            with fv.drop(model, method) as alone:
                single = model(**batch(family, [word], start=False)).logits[0, -1]
            torch.testing.assert_close(logits[index], single, **CLOSE)
            assert [layer[index] for layer in together.kv_lengths] == [layer[0] for layer in alone.kv_lengths]
            kept = [stage.kept[index].tolist() for stage in together.stages if stage.where != "kv"]
            single = [stage.kept[0].tolist() for stage in alone.stages if stage.where != "kv"]
            assert kept == (single or [[]] * len(kept))  # a cache is cut where anybody left
