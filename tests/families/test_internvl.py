"""InternVL3: its tiny model, and what is special: tiles of an image are told by the prompt, a CLS, pixel shuffle."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import foveate as fv
from foveate.families.tiles import mosaic
from foveate.methods.visiondrop import VisionDrop
from foveate.registry import family_for
from tests import models, tiny_others
from tests.tiny import IMAGE, TEXT, Frames, Picture, Tiny


def config() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "patch_size": [14, 14], "image_size": [84, 84], "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT), vision_config=vision, image_token_id=IMAGE, image_seq_length=9,
        tie_word_embeddings=False,
    )  # fmt: skip


def tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Two tiles and the whole, a single one, four and the whole."""
    counts = torch.tensor([3, 1, 5])[torch.arange(count) % 3].tolist()
    return [{"pixel_values": torch.randn(tiles, 3, 84, 84, generator=rng)} for tiles in counts]


def frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of three frames and of two, a tile each."""
    counts = torch.tensor([3, 2])[torch.arange(count) % 2].tolist()
    return [Frames(pixel_values=torch.randn(frames, 3, 84, 84, generator=rng)) for frames in counts]


def wrapped(picture: Picture, length: int, tile: int = 9) -> Tensor:
    """A start token, the placeholders in one run, an end token; for each frame of a video, with text before it."""
    if isinstance(picture, Frames):
        return torch.tensor([5, 6, 7, 93, *[IMAGE] * tile, 94] * (length // tile))
    return torch.tensor([93, *[IMAGE] * length, 94])


TINY = Tiny(config, "InternVLForConditionalGeneration", tiles, frames, wrapped)


def other_config() -> Any:
    """Four by four patches a token."""
    vision = {
        **tiny_others.tower(4, 3, 48, 6), "patch_size": [6, 6], "image_size": [48, 48], "use_qk_norm": True,
        "norm_type": "rms_norm", "attention_bias": True,
    }  # fmt: skip
    del vision["projection_dim"]
    return transformers.InternVLConfig(
        text_config=transformers.LlamaConfig(**tiny_others.text(7, 4, 1, 20), head_dim=8), vision_config=vision,
        image_token_id=IMAGE, image_seq_length=4, downsample_ratio=0.25, vision_feature_layer=-2,
        tie_word_embeddings=False,
    )  # fmt: skip


def other_tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A single tile, six and the whole, one and the whole."""
    return [{"pixel_values": torch.randn([1, 7, 2][at % 3], 3, 48, 48, generator=rng)} for at in range(count)]


def other_frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    return [Frames(pixel_values=torch.randn(4, 3, 48, 48, generator=rng)) for _ in range(count)]


OTHER = replace(TINY, config=other_config, pictures=other_tiles, videos=other_frames, ids=partial(wrapped, tile=4))
TOWER = VisionDrop(dominant=14, contextual=3, layer_list=(2,), image_token_list=((9, 2),), reference=25)


def cut_up(rows: int, columns: int, side: int = 84) -> Tensor:
    """A picture as the processor makes it: tiles in raster order, and the whole."""
    rng = torch.Generator().manual_seed(rows + 20 * columns)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9, generator=rng), (rows * side, columns * side))
    parts = picture[0].unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(0, 1)
    whole = torch.nn.functional.interpolate(picture, (side, side), mode="bicubic", antialias=True)
    return torch.cat((parts, whole))


@pytest.mark.parametrize("grid", [(r, c) for r in range(1, 13) for c in range(1, 13) if 2 <= r * c <= 12])
def test_the_whole_tells_which_mosaic_the_tiles_make(grid):
    assert mosaic(cut_up(*grid, side=32)) == grid


def test_tokens_look_where_their_tiles_do():
    family, pixels = family_for(models.tiny("internvl")), torch.cat((cut_up(2, 3), cut_up(1, 1)[:1], cut_up(3, 1)))
    arguments = family.arguments_kept({"pixel_values": pixels})
    pictures = family.pictures(family.model.config, "image", arguments, [7 * 9, 9, 4 * 9])
    wide, single, tall = (picture.boxes for picture in pictures)
    assert wide[0].tolist() == pytest.approx([0, 0, 1 / 9, 1 / 6])
    assert wide[9 * 4 + 5].tolist() == pytest.approx([5 / 9, 4 / 6, 6 / 9, 5 / 6])  # second row of tiles, second column
    assert wide[-9:].tolist() == single.tolist()
    assert tall[9].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 4 / 9])  # the second of three tiles in a column
    assert [picture.grids for picture in pictures] == [((3, 3),) * 7, ((3, 3),), ((3, 3),) * 4]
    others = family.pictures(family.model.config, "image", arguments, [9, 9])
    assert [picture.boxes for picture in others] == [None, None]  # not the tiles of this call


def test_tiles_in_one_column_are_views_of_their_own():
    model, ids = models.tiny("internvl"), torch.tensor([[1, 93, *[IMAGE] * 36, 94, 7]])
    with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,))) as trace, torch.no_grad():
        model(input_ids=ids, pixel_values=cut_up(3, 1))
    cells, grids = trace.latest.media[0][0].cells
    assert grids == ((3, 3),) * 4
    assert cells[::9].tolist() == [[view, 0, 0] for view in range(4)]


@pytest.mark.skipif("not models.ENCODES_FIRST", reason="here a model takes no features made before")
def test_encoded_by_hand_all_tiles_of_a_call_are_one_image():
    model, inputs = models.tiny("internvl"), models.batch("internvl", ["tit"])
    pixels = {"pixel_values": inputs.pop("pixel_values")}
    with fv.drop(model, TOWER) as trace, torch.no_grad():
        expected = model(**inputs, **pixels).logits
        output = model.model.get_image_features(**pixels)
        got = model(**inputs, mm_encoder_outputs={"image": output}).logits
        assert torch.equal(got, expected)
        assert [stage.after for stage in trace.stages] == [stage.after for stage in trace.history[0].stages]
        two = models.batch("internvl", ["titit"])
        output = model.model.get_image_features(two.pop("pixel_values"))
        with pytest.raises(fv.UnsupportedError, match="without their prompt"):
            model(**two, mm_encoder_outputs={"image": output})


@pytest.mark.skipif("not models.ENCODES_FIRST", reason="here a model takes no features made before")
def test_features_made_outside_serve_a_method_between_layers():
    model, inputs = models.tiny("internvl"), models.batch("internvl", ["titit"])
    with torch.no_grad():
        output = model.model.get_image_features(inputs["pixel_values"])
        with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,), scope="image")) as trace:
            expected = model(**inputs).logits
            del inputs["pixel_values"]
            assert torch.equal(model(**inputs, mm_encoder_outputs={"image": output}).logits, expected)
    assert trace.stages[0].after == (13 + 4,)
    assert list(trace.latest.boxes[0]) == [None, None]


def test_a_frame_of_a_video_is_an_image():
    """The processor puts frames among the tiles, each in a run of placeholders of its own."""
    model, rng = models.tiny("internvl"), torch.Generator().manual_seed(1)
    ids = torch.tensor([[1, *([5, 6, 93, *[IMAGE] * 9, 94] * 3), 7, 8]])
    method = fv.Uniform(layers=(1,), keep=(0.5,), scope="image")
    with fv.drop(model, method) as trace:
        models.generate(
            model, {"input_ids": ids, "pixel_values": torch.randn(3, 3, 84, 84, generator=rng)}, new_tokens=2
        )
    assert trace.stages[0].after == (4 * 3,)
    assert [len(boxes) for boxes in trace.latest.boxes[0]] == [9, 9, 9]


def test_a_count_that_is_no_multiple_of_a_tile_is_refused():
    with pytest.raises(fv.SettingError, match="27"):
        fv.cost(models.tiny("internvl"), text_tokens=5, vision_tokens=[27, 31])
