import math

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.grid import closing_rows, coarser, crops_of, frames_of, into_cells, join
from foveate.families.vision import grid_boxes

sides = st.integers(1, 40)


@pytest.mark.parametrize(
    ("grid", "tokens", "cells"),
    [
        ((24, 24), 192, (13, 14)),
        ((24, 24), 128, (11, 11)),
        ((24, 24), 64, (8, 8)),
        ((24, 24), 576, (24, 24)),
        ((24, 24), 1, (1, 1)),
        ((36, 27), 324, (20, 16)),
        ((4, 6), 6, (2, 3)),
        ((1, 20), 7, (1, 7)),
        ((20, 1), 7, (7, 1)),
        ((2, 3), 0.2, (1, 1)),
    ],
)
def test_the_nearest_coarser_grid(grid, tokens, cells):
    assert coarser(grid, tokens) == cells


@given(rows=sides, columns=sides, share=st.floats(0, 1))
def test_a_coarser_grid_stays_within_its_budget_and_near_it_and_keeps_the_aspect(rows, columns, share):
    budget = max(1, int(share * rows * columns))
    tall, wide = coarser((rows, columns), budget)
    assert 1 <= tall <= rows
    assert 1 <= wide <= columns
    assert tall * wide <= budget
    assert budget - tall * wide < max(tall, wide) + 1  # one more row or column would not fit
    exact = math.sqrt(budget / (rows * columns))
    assert tall >= min(rows, budget, max(1, math.floor(rows * exact))) / 2
    assert wide >= min(columns, budget, max(1, math.floor(columns * exact))) / 2


def test_a_share_of_a_count_loses_no_token_to_rounding():
    assert all(coarser((1, n), k / n * n) == (1, k) for n in range(1, 200) for k in range(1, n + 1))


def test_cells_of_a_small_grid_by_hand():
    merge = into_cells((3, 4), (1, 2))
    assert merge.parent.tolist() == [0, 0, 1, 1] * 3
    assert merge.source.tolist() == [5, 7]  # the middle row; of two columns the second is over the centre
    merge = into_cells((5, 5), (2, 3))
    assert merge.parent.tolist() == [0, 0, 1, 2, 2] * 2 + [3, 3, 4, 5, 5] * 3
    assert merge.source.tolist() == [5, 7, 9, 15, 17, 19]
    merge = into_cells((2, 2), (1, 1), newlines=True)
    assert merge.parent.tolist() == [0, 0, 1, 0, 0, 1]
    assert merge.source.tolist() == [4, 5]


@given(rows=sides, columns=sides, data=st.data(), newlines=st.booleans())
def test_every_token_goes_into_one_cell_and_every_cell_stands_for_one_of_its_own(rows, columns, data, newlines):
    tall, wide = data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns))
    merge = into_cells((rows, columns), (tall, wide), newlines)
    assert len(merge.parent) == rows * (columns + newlines)
    assert merge.count == tall * (wide + newlines)
    assert merge.parent[merge.source].tolist() == list(range(merge.count))
    assert (merge.source.diff() > 0).all()
    for token, cell in enumerate(merge.parent.tolist()):  # a loop in floating point says the same
        row, column = divmod(token, columns + newlines)
        down = math.floor((row + 0.5) * tall / rows + 1e-9)
        across = wide if column == columns else math.floor((column + 0.5) * wide / columns + 1e-9)
        assert cell == down * (wide + newlines) + across


def test_grids_are_joined_one_behind_the_other():
    merge = join([into_cells((2, 2), (1, 1)), into_cells((1, 2), (1, 2))])
    assert merge.source.tolist() == [3, 4, 5]
    assert merge.parent.tolist() == [0, 0, 0, 0, 1, 2]


@given(rows=sides, columns=sides, count=st.integers(1, 9), newline=st.booleans())
def test_frames_begin_at_the_corner_and_a_closing_newline_is_of_the_last(rows, columns, count, newline):
    frames = [grid_boxes(rows, columns)] * count
    boxes = torch.cat([*frames, torch.full((int(newline), 4), float("nan"))])
    size = rows * columns
    assert frames_of(boxes) == (size,) * (count - 1) + (size + newline,)


def test_a_token_without_a_place_that_begins_each_frame_is_of_the_frame_behind_it():
    nowhere = torch.full((1, 4), float("nan"))
    assert frames_of(torch.cat([nowhere, grid_boxes(2, 2)] * 3)) == (5, 5, 5)
    assert frames_of(nowhere) == (1,)


def test_only_a_newline_that_ends_the_image_stays():
    assert [closing_rows(count) for count in (0, 1, 2, 9)] == [0, 1, 0, 0]


def lists(crops):
    return [crop.tolist() for crop in crops]


def test_a_map_is_divided_into_tiles_of_the_base_views_size():
    assert lists(crops_of((), 3)) == [[0, 1, 2]]
    # A base view of 2 x 2, then a map of 2 x 4: two tiles side by side.
    assert lists(crops_of(((2, 2), (2, 4)), 12)) == [[0, 1, 2, 3], [4, 5, 8, 9], [6, 7, 10, 11]]
    # Three of four columns are left: one was cut off, on the right, as an odd one is.
    assert lists(crops_of(((2, 2), (2, 3)), 10)) == [[0, 1, 2, 3], [4, 5, 7, 8], [6, 9]]


def test_unpadding_has_trimmed_both_sides():
    # A map of 2 x 2 tiles of 4 x 4, unpadded to 4 of its 8 rows: two rows are left of each tile.
    crops = crops_of(((4, 4), (4, 8)), 48)
    assert [len(crop) for crop in crops] == [16, 16, 16]  # 4 rows fit into one tile: what was there cannot be told
    crops = crops_of(((4, 4), (6, 8)), 64)  # one row was cut off above and one below
    assert [len(crop) for crop in crops] == [16, 12, 12, 12, 12]
    assert crops[1].tolist() == [16 + 8 * row + column for row in range(3) for column in range(4)]
