"""Contact sheets of a clip and the histogram below them."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from foveate.errors import ShapeError
from foveate.families.vision import grid_boxes
from foveate.viz import Frame, draw_frames
from foveate.viz.contact_sheet import BAR

RED = (230, 20, 20)


def frames(count, size=(40, 30), colour=RED, grid=(2, 3)):
    return [Frame(Image.new("RGB", size, colour), grid_boxes(*grid), f"{at}.0 s") for at in range(count)]


def pixels_of(picture, colour):
    return int((np.asarray(picture) == np.array(colour, np.uint8)).all(axis=-1).sum())


def bars(picture):
    """Heights of the histogram's bars from left to right, in pixels, where a column of pixels has any."""
    blue = (np.asarray(picture) == np.round(np.array(to_rgb(BAR)) * 255).astype(np.uint8)).all(axis=-1)
    return blue.sum(axis=0)


def test_a_sheet_of_all_frames_and_one_a_stage_with_what_left_dimmed():
    alone = draw_frames(frames(4), [])
    half = draw_frames(frames(4), [("half", range(12))])
    assert pixels_of(half, RED) == pytest.approx(1.5 * pixels_of(alone, RED), rel=0.01)
    assert half.height > 2 * alone.height - 60


def test_which_frame_is_bright_is_the_one_that_was_kept():
    picture = draw_frames(frames(2), [("the second", range(6, 12))])
    red = (np.asarray(picture) == np.array(RED, np.uint8)).all(axis=-1)
    columns, rows = red.any(axis=0).nonzero()[0], red.any(axis=1).nonzero()[0]
    stage = red[(rows[0] + rows[-1]) // 2 :]  # the lower sheet
    middle = (columns[0] + columns[-1]) // 2
    assert stage[:, :middle].sum() == 0 < stage[:, middle:].sum()


def test_bars_are_the_tokens_kept_of_each_frame():
    kept = [0, 1, 2, 6, 7, 12]  # 3, 2 and 1 of six each
    columns = bars(draw_frames(frames(3), [("a stage", kept)]))
    there = (columns > 0).astype(int)
    starts = (np.diff(np.concatenate(([0], there))) == 1).nonzero()[0]
    assert len(starts) == 3
    heights = [int(columns[start + 5 : start + 40].max()) for start in starts]
    assert np.array(heights) / heights[0] == pytest.approx([1, 2 / 3, 1 / 3], abs=0.03)


def test_of_many_frames_some_are_drawn_and_the_histogram_has_all():
    many, few = draw_frames(frames(100), [("all", range(600))]), draw_frames(frames(40), [("all", range(240))])
    assert many.size == few.size
    runs = (np.diff(np.concatenate(([0], (bars(many) > 0).astype(int)))) == 1).sum()
    assert runs > 40


def test_a_merged_stage_is_tinted_and_says_so():
    assign = torch.tensor([0] * 6 + list(range(1, 7)))
    origin = torch.tensor([0, *range(6, 12)])
    tinted, plain = draw_frames(frames(2), [("merged", origin, assign)]), draw_frames(frames(2), [("kept", origin)])
    assert tinted.width == plain.width
    assert tinted.tobytes() != plain.tobytes()


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ShapeError, match="got 0 images"):
        draw_frames([], [])
    with pytest.raises(ShapeError, match="ordinals"):
        draw_frames(frames(2), [("too far", [12])])
