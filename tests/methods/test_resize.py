import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.contract import Arriving
from foveate.families.qwen_vl import _resize
from foveate.methods.averagepool import AveragePool
from foveate.methods.resize import Resize
from tests.contract.test_gridded import seen
from tests.models import IMAGE, QWENS, batch, generate, tiny

EXAMPLES = [Resize(keep=0.4), Resize(keep=0.15)]
KEEP_ALL = Resize(keep=1.0)
SMALLEST = Resize(keep=0.001)
DEPTH = 6
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def pictures_of(inputs):
    return {name: inputs[name] for name in ("pixel_values", "image_sizes", "image_grid_thw") if name in inputs}


def test_llavas_rows_are_the_towers_on_the_smaller_picture():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    small = torch.nn.functional.interpolate(inputs["pixel_values"], (42, 42), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model.model.get_image_features(pixel_values=small, interpolate_pos_encoding=True).pooler_output[0]
        with fv.drop(model, Resize(keep=0.4)) as trace:
            (got,) = model.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output
            model(**inputs)
    assert len(expected) == 9
    assert torch.equal(got[:9], expected)
    assert got.shape == (25, 32)
    assert not got[9:].any()
    (stage,) = trace.stages
    assert (stage.where, stage.before, stage.after) == ("tower", (25,), (9,))
    assert stage.origin[0].tolist() == [0, 2, 4, 10, 12, 14, 20, 22, 24]
    assert [len(members) for members in stage.merged[0]] == [4, 2, 4, 2, 1, 2, 4, 2, 4]


@pytest.mark.parametrize("family", QWENS)
def test_a_qwen_sees_what_it_would_natively_see_of_the_smaller_picture(family):
    """The whole decoder against a short prompt with small pictures, at the position ids the trace names."""
    model, inputs = tiny(family), batch(family, ["titit"])
    vision = model.config.vision_config
    with fv.drop(model, Resize(keep=0.4)) as trace, torch.no_grad():
        logits = model(**inputs, logits_to_keep=1).logits
    ids, grids = inputs["input_ids"][0], inputs["image_grid_thw"]
    small, pixels = grids.clone(), []
    for index, patches in enumerate(inputs["pixel_values"].split(grids.prod(-1).tolist())):
        _, h, w = grids[index].tolist()
        tokens = h * w // 4
        (cells,) = Resize(keep=0.4).coarsen(Arriving(tokens, tokens, tokens, grids=((h // 2, w // 2),)))
        small[index] = torch.tensor([1, 2 * cells[0], 2 * cells[1]])
        pixels.append(patches if cells == (h // 2, w // 2) else _resize(patches, (1, h, w), cells, vision))
    columns = (ids == IMAGE).nonzero()[:, 0]
    rows = torch.cat(((ids != IMAGE).nonzero()[:, 0], columns[trace.stages[0].origin[0]])).sort().values
    types = inputs["mm_token_type_ids"]
    positions, _ = model.model.get_rope_index(inputs["input_ids"], mm_token_type_ids=types, image_grid_thw=grids)
    with torch.no_grad():
        short = model(
            input_ids=ids[None, rows], pixel_values=torch.cat(pixels), image_grid_thw=small,
            position_ids=positions[..., rows], mm_token_type_ids=types[:, rows], logits_to_keep=1,
        ).logits  # fmt: skip
    assert len(rows) < len(ids)
    torch.testing.assert_close(logits, short, **CLOSE)


def patches_of(picture, side, patch, frames):
    """Qwen's patches of a picture, (channels, rows, columns), repeated for its frames: a loop over tokens."""
    _, height, width = picture.shape
    cell, out = side * patch, []
    for top in range(0, height, cell):
        for left in range(0, width, cell):
            for down in range(0, cell, patch):
                for across in range(0, cell, patch):
                    piece = picture[:, top + down : top + down + patch, left + across : left + across + patch]
                    out.append(piece[:, None].expand(-1, frames, -1, -1).reshape(-1))
    return torch.stack(out)


def test_qwens_patches_are_put_together_resized_and_cut_anew():
    vision = tiny("qwen2_vl").config.vision_config
    side, patch, frames = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    picture = torch.randn(3, 2 * side * patch, 3 * side * patch, generator=torch.Generator().manual_seed(0))
    given_ = patches_of(picture, side, patch, frames)
    assert torch.equal(_resize(given_, (1, 2 * side, 3 * side), (2, 3), vision), given_)
    size = (side * patch, 2 * side * patch)
    small = torch.nn.functional.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    got = _resize(given_, (1, 2 * side, 3 * side), (1, 2), vision)
    torch.testing.assert_close(got, patches_of(small, side, patch, frames))
    two = _resize(torch.cat((given_, -given_)), (2, 2 * side, 3 * side), (1, 2), vision)
    torch.testing.assert_close(two, torch.cat((got, -got)))


def test_onevisions_single_view_is_the_towers_on_the_smaller_view():
    model = tiny("llava_onevision")
    rng = torch.Generator().manual_seed(3)
    pixels, sizes = torch.randn(2, 1, 3, 70, 70, generator=rng), torch.tensor([[70, 70], [70, 70]])
    small = torch.nn.functional.interpolate(pixels[:, 0], (42, 42), mode="bilinear", antialias=True)
    core = model.model
    with torch.no_grad():
        states = core.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states[-1]
        expected = core.multi_modal_projector(states)
        with fv.drop(model, Resize(keep=0.4)):
            two = {"pixel_values": pixels, "image_sizes": sizes, "batch_num_images": torch.tensor([2])}
            got = core.get_image_features(**two).pooler_output
    for one, rows in zip(got, expected, strict=True):
        torch.testing.assert_close(one[:9], rows)
        assert torch.equal(one[9], core.image_newline)
        assert one.shape == (26, 32)
        assert not one[10:].any()


def test_onevisions_tiles_are_packed_as_the_model_packs_its_own():
    """A model whose tower is that small from the start packs the smaller tiles into the same rows."""
    model = tiny("llava_onevision")
    rng = torch.Generator().manual_seed(4)
    pixels, sizes = torch.randn(1, 5, 3, 70, 70, generator=rng), torch.tensor([[140, 140]])
    with fv.drop(model, Resize(keep=0.4)), torch.no_grad():
        (got,) = model.model.get_image_features(pixel_values=pixels, image_sizes=sizes).pooler_output
    small = torch.nn.functional.interpolate(pixels[0], (42, 42), mode="bilinear", antialias=True)
    with torch.no_grad():
        states = model.model.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True)
        views = model.model.multi_modal_projector(states.hidden_states[-1]).view(5, 3, 3, -1)
    newline, expected = model.model.image_newline, [*views[0].flatten(0, 1)]
    for row in range(6):
        for column in range(6):
            expected.append(views[1 + 2 * (row // 3) + column // 3, row % 3, column % 3])
        expected.append(newline)
    torch.testing.assert_close(got[: len(expected)], torch.stack(expected))
    assert not got[len(expected) :].any()
    cut = got._foveate.cut
    assert cut.source[8] == 24  # the base view's last cell over its last patch
    assert cut.source[15] == 25 + 10  # the first tile row's newline for a newline


def test_a_onevision_video_is_resized_frame_by_frame():
    model = tiny("llava_onevision")
    pixels = torch.randn(1, 3, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, *[92] * 28, 5, 6]])
    with fv.drop(model, Resize(keep=0.5)) as trace:
        generate(model, {"input_ids": ids, "pixel_values_videos": pixels})
    assert trace.stages[0].after == (3 * 4 + 1,)
    small = torch.nn.functional.interpolate(pixels[0], (56, 56), mode="bilinear", antialias=True)
    with torch.no_grad():
        states = model.model.vision_tower(small, interpolate_pos_encoding=True, output_hidden_states=True)
        frames = model.model.multi_modal_projector(states.hidden_states[-1]).view(3, 4, 4, -1)
        with fv.drop(model, Resize(keep=0.5)):
            got = model.model.get_video_features(pixels).pooler_output[0]
    pooled = frames.view(3, 2, 2, 2, 2, -1).mean(dim=(2, 4)).flatten(0, 2)
    torch.testing.assert_close(got[:12], pooled)
    assert torch.equal(got[12], model.model.image_newline)


@pytest.mark.parametrize("family", QWENS)
def test_a_qwen_video_is_resized_frame_by_frame(family):
    model, vision = tiny(family), tiny(family).config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(3 * 16, width, generator=torch.Generator().manual_seed(0))
    given_ = {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor([[3, 4, 4]])}
    with torch.no_grad():
        with fv.drop(model, Resize(keep=0.25)):
            (got,) = model.model.get_video_features(**given_).pooler_output
        small = _resize(pixels, (3, 4, 4), (1, 1), vision)
        expected = model.model.get_video_features(small, torch.tensor([[3, 2, 2]])).pooler_output[0]
    assert got.shape == (12, 32)
    torch.testing.assert_close(got[:3], expected)
    assert got._foveate.cut.source.tolist() == [3, 7, 11]


@pytest.mark.parametrize("family", ["idefics3", "internvl", "llava", "mistral3", "qwen2_vl", "qwen2_5_vl"])
def test_the_smaller_towers_flops_are_counted(family):
    model, inputs, method = tiny(family, "eager"), batch(family, ["tit"]), Resize(keep=0.4)
    with fv.drop(model, method) as trace, torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model.model.get_image_features(**pictures_of(inputs))
        model(**inputs)
    sizes, grids = seen(trace)
    told = fv.cost(model, text_tokens=7, vision_tokens=sizes, method=method, grids=grids)
    assert told.tower_flops + told.projector_flops == counter.get_total_flops()
    assert told.tower_flops < fv.cost(model, text_tokens=7, vision_tokens=sizes, grids=grids).tower_flops


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), keep=st.floats(0.01, 1.0))
def test_it_spends_what_average_pooling_spends(rows, columns, keep):
    size, grids = rows * columns, [((rows, columns),)]
    assert Resize(keep=keep).plan(8, (size,), grids) == AveragePool(keep=keep).plan(8, (size,), grids)
