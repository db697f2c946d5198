"""Where tokens look: one box a token, the newline without a place, and the picture covered."""

import pytest
import torch

import foveate as fv
from foveate.families.base import Family
from foveate.families.vision import PictureLayout, grid_boxes
from foveate.registry import family_for
from tests.models import FAMILIES, TINY, batch, generate, tiny


def test_a_grid_in_raster_order():
    boxes = grid_boxes(2, 4)
    assert boxes[0].tolist() == [0, 0, 0.25, 0.5]
    assert boxes[3].tolist() == [0.75, 0, 1, 0.5]
    assert boxes[4].tolist() == [0, 0.5, 0.25, 1]


def covered(boxes, height=40, width=40):
    """Share of the picture under the boxes."""
    canvas = torch.zeros(height, width, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes[~boxes.isnan().any(-1)].tolist():
        canvas[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)] = True
    return canvas.float().mean().item()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_has_a_box_and_together_they_cover_the_picture(family):
    model, inputs = tiny(family), batch(family, ["titit", "t", "ti"])
    with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,))) as trace:
        generate(model, inputs, new_tokens=2)
    assert [len(boxes) for boxes in trace.latest.boxes] == [2, 0, 1]
    for sample, count in zip(trace.latest.boxes, trace.vision_tokens, strict=True):
        assert sum(len(boxes) for boxes in sample) == count
        assert all(covered(boxes) > 0.97 for boxes in sample)


def test_cells_count_grids_rows_and_columns_and_pass_newlines_over():
    """A view of 1 x 2, then a tile of 2 x 1 with a newline behind each row."""
    none = [-1, -1, -1]
    layout = PictureLayout(((1, 2), (2, 1)), beside=(3, 5))
    assert layout.cells.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], none, [1, 1, 0], none]
    assert layout.boxes.isnan().any(-1).tolist() == [False, False, False, True, False, True]
    assert layout.boxes[4].tolist() == [0, 0.5, 1, 1]
    assert PictureLayout().cells.tolist() == []


def test_onevision_video_frames_end_in_one_newline():
    model = tiny("llava_onevision")
    boxes = family_for(model).pictures(model.config, "video", {}, [4 * 9 + 1])[0].boxes
    assert boxes.isnan().any(-1).tolist() == [False] * 36 + [True]
    assert torch.equal(boxes[:9], boxes[9:18])


def test_a_family_that_cannot_tell_says_so_when_asked_to_draw():
    model, inputs = tiny("llava"), batch("llava", ["ti"])
    from PIL import Image

    with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,))) as trace, torch.no_grad():
        model(**inputs)
    with pytest.raises(fv.InputError, match="1 images"):
        trace.show([Image.new("RGB", (70, 70))] * 2)
    trace.latest.boxes = [[picture.boxes for picture in Family.pictures(model.config, "image", {}, [25])]]
    with pytest.raises(fv.InputError, match="not known"):
        trace.show(Image.new("RGB", (70, 70)))


def test_every_family_has_a_tiny_model():
    assert set(fv.families()) == set(TINY)


def test_a_part_of_a_model_is_refused():
    model = tiny("llava").model.vision_tower
    model.config.model_type = "clip_vision_model"
    with pytest.raises(fv.UnsupportedError, match="clip_vision_model"):
        family_for(model)
