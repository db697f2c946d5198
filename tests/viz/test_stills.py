"""The picture of the stages: kept patches untouched, dropped ones grey and dark, nothing global touched."""

import numpy as np
import pytest
import torch
from PIL import Image

from foveate.errors import ShapeError
from foveate.viz import draw_stages
from foveate.viz.dim import TINT, covered_share, dim, group_colour

NAN = float("nan")


def grid(rows, columns):
    """(rows * columns, 4) boxes of a grid, in raster order."""
    y, x = np.mgrid[0:rows, 0:columns]
    return np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=-1).reshape(-1, 4)


def plain(colour, size=(40, 40)):
    return np.asarray(Image.new("RGB", size, colour))


def test_kept_patches_are_untouched_and_dropped_ones_are_grey_and_darker():
    picture = plain((200, 60, 20))
    shown = dim(picture, grid(2, 2), np.array([1]))
    assert (shown[:20, 20:] == picture[:20, 20:]).all()
    dropped = shown[20:, :20].astype(int)
    assert dropped.mean() < picture[20:, :20].mean() - 20
    assert np.ptp(dropped, axis=-1).max() < 20 < np.ptp(picture.astype(int), axis=-1).min()


def test_keeping_everything_shows_the_picture_itself():
    picture = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    assert (dim(picture, grid(5, 7), np.arange(35)) == picture).all()


def test_a_pixel_counts_every_box_over_it_and_edges_go_to_the_nearest_pixel():
    boxes = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [NAN, NAN, NAN, NAN]])  # the last token has no place
    assert covered_share(boxes, 4, 4).tolist() == [[2, 2, 1, 1], [2, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert covered_share(np.array([[0.16, 0, 0.36, 1]]), 1, 10).tolist() == [[0, 0, 1, 1, 0, 0, 0, 0, 0, 0]]
    assert (covered_share(grid(24, 24), 405, 333) == 1).all()


def test_where_two_tokens_overlap_brightness_follows_the_share_that_stayed():
    picture = plain((220, 220, 220), (4, 4))
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], dtype=float)
    both, one, none = (int(dim(picture, boxes, np.arange(n))[0, 0, 0]) for n in (2, 1, 0))
    assert both > one > none
    assert abs(2 * one - both - none) <= 2


def test_what_no_token_covers_is_washed_out_not_darkened():
    picture = plain((90, 90, 90))
    left = np.array([[0, 0, 0.5, 1]])
    shown = dim(picture, left, np.array([0]))
    assert (shown[:, :20] == 90).all()
    assert shown[:, 20:].min() > 180


def panel(sheet, number, of, colour, tolerance=6):
    """How many pixels of panel `number` (of `of`, side by side) have this colour."""
    wide = sheet.width // of
    part = np.asarray(sheet.crop((number * wide, 0, (number + 1) * wide, sheet.height))).astype(int)
    return int((np.abs(part - np.array(colour)).max(axis=-1) <= tolerance).sum())


def test_the_figure_shows_the_picture_and_one_panel_a_stage():
    red = (210, 20, 20)
    sheet = draw_stages(
        [Image.new("RGB", (64, 64), red)],
        [torch.tensor(grid(4, 4))],
        [("before layer 3: 8 of 16", torch.arange(8)), ("before layer 5: 4 of 16", [0, 1, 2, 3])],
    )
    whole, half, quarter = (panel(sheet, number, 3, red) for number in range(3))
    assert sheet.mode == "RGB"
    assert half / whole == pytest.approx(1 / 2, abs=0.02)
    assert quarter / whole == pytest.approx(1 / 4, abs=0.02)


def test_ordinals_run_over_all_images_and_land_in_the_right_one():
    red, blue = (210, 20, 20), (20, 20, 210)
    sheet = draw_stages(
        [Image.new("RGB", (60, 60), red), Image.new("RGB", (60, 30), blue)],
        [grid(2, 2), np.concatenate([grid(1, 2), [[NAN] * 4]])],
        [("cut", torch.tensor([0, 1, 2, 3, 6])), ("again", torch.tensor([5]))],
    )
    assert panel(sheet, 1, 3, red) == pytest.approx(panel(sheet, 0, 3, red), rel=0.01)
    assert panel(sheet, 1, 3, blue) == 0  # its only survivor is the token with no place
    assert panel(sheet, 2, 3, red) == 0
    assert panel(sheet, 2, 3, blue) == pytest.approx(panel(sheet, 0, 3, blue) / 2, rel=0.02)


@pytest.mark.parametrize(
    ("images", "boxes", "kept", "says"),
    [
        (0, [], [], "0 images"),
        (2, [grid(2, 2)], [], "2 images and 1 arrays"),
        (1, [np.zeros((4, 3))], [], r"\(4, 3\)"),
        (1, [grid(2, 2)], [4], "have 4 tokens"),
        (1, [grid(2, 2)], [-1], "ordinals -1"),
    ],
)
def test_things_that_do_not_fit_together_are_refused(images, boxes, kept, says):
    with pytest.raises(ShapeError, match=says):
        draw_stages([Image.new("RGB", (8, 8))] * images, boxes, [("cut", kept)])


def test_merged_patches_are_tinted_kept_ones_untouched_and_dropped_ones_dark():
    white = Image.new("RGB", (64, 64), (200, 200, 200))
    # Tokens 0 and 1 stay; 2, 3 and 7 join 6; 4 joins 5; the rest leaves.
    origin, assign = [0, 1, 6, 5], [0, 1, 2, 2, 3, 3, 2, 2, *[-1] * 8]
    merged = draw_stages([white], [grid(4, 4)], [("cut", origin, assign)])
    kept = draw_stages([white], [grid(4, 4)], [("cut", [0, 1])])
    assert panel(merged, 1, 2, (200, 200, 200)) == pytest.approx(panel(kept, 1, 2, (200, 200, 200)), rel=0.01)
    first, second = (200 + TINT * (group_colour(target) - 200) for target in (6, 5))
    whole = panel(kept, 0, 2, (200, 200, 200))
    assert panel(merged, 1, 2, first) == pytest.approx(whole * 4 / 16, rel=0.05)  # but for the frame
    assert panel(merged, 1, 2, second) == pytest.approx(whole * 2 / 16, rel=0.05)
    assert panel(merged, 1, 2, group_colour(6)) > 300  # the frame
    assert merged.height > kept.height  # a legend


def test_a_cls_row_is_nowhere_and_rows_of_one_token_are_no_merging():
    red = Image.new("RGB", (64, 64), (210, 20, 20))
    sheet = draw_stages([red], [grid(2, 2)], [("cut", [-1, 0, 3], [1, -1, -1, 2])])
    assert panel(sheet, 1, 2, (210, 20, 20)) == pytest.approx(panel(sheet, 0, 2, (210, 20, 20)) / 2, rel=0.02)


@pytest.mark.parametrize(("origin", "assign"), [([0, 1], [0, 1, 1]), ([0], [0, 1, -1, -1]), ([4], [0, 0, 0, 0])])
def test_merging_that_does_not_fit_the_tokens_is_refused(origin, assign):
    with pytest.raises(ShapeError, match="have 4 tokens"):
        draw_stages([Image.new("RGB", (8, 8))], [grid(2, 2)], [("cut", origin, assign)])
