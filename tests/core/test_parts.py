import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.parts import crops_of, pick_by_crop, shares


def lists(crops):
    return [crop.tolist() for crop in crops]


def test_a_plain_grid_is_one_crop_and_frames_are_several():
    assert lists(crops_of(((2, 3),), 6)) == [[0, 1, 2, 3, 4, 5]]
    assert lists(crops_of(((1, 2), (1, 2), (1, 2)), 6)) == [[0, 1], [2, 3], [4, 5]]


def test_a_map_is_divided_into_tiles_of_the_base_views_size():
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


def test_tokens_on_no_known_grid_are_one_crop():
    assert lists(crops_of((), 3)) == [[0, 1, 2]]
    assert lists(crops_of(((2, 2),), 3)) == [[0, 1, 2]]  # an earlier stage has dropped one


def test_shares_by_hand():
    assert shares(160, [576] * 5) == [32] * 5
    assert shares(64, [576] * 5) == [13, 13, 13, 13, 12]
    assert shares(10, [4, 12, 4]) == [2, 6, 2]
    assert shares(3, [1, 1, 9]) == [0, 0, 3]  # 0.27, 0.27, 2.45
    assert shares(0, [3, 3]) == [0, 0]
    assert shares(0, []) == []


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_shares_sum_exactly_and_fit(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    found = shares(count, sizes)
    assert sum(found) == count
    for share, size in zip(found, sizes, strict=True):
        assert share <= size
        assert abs(share * sum(sizes) - count * size) < max(sum(sizes), 1)


def test_each_crop_picks_its_share():
    values = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])

    def largest(tokens, count):
        return values[tokens].sort(descending=True, stable=True).indices[:count]

    grids = ((2, 2), (2, 4))  # crops 0 1 2 3, 4 5 8 9 and 6 7 10 11
    assert pick_by_crop(grids, values, 6, largest).tolist() == [0, 2, 4, 5, 7, 11]
    assert pick_by_crop(grids, values, 5, largest).tolist() == [0, 2, 4, 5, 11]  # 2, 2 and 1
    assert pick_by_crop(grids, values, 1, largest).tolist() == [2]  # two crops get nothing
    assert pick_by_crop((), values, 3, largest).tolist() == [5, 7, 11]


def test_a_batch_of_images_is_each_alone_and_crops_of_one_size_run_together():
    rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    calls = []

    def picked(rows):
        def largest(tokens, count):
            calls.append(count)
            return rows[tokens].sort(descending=True, stable=True).indices[:count]

        return pick_by_crop(((4, 4), (4, 8)), rows, 13, largest)

    together = torch.func.vmap(picked)(rows)
    assert calls == [5, 4]  # one crop of 5, two of 4
    assert torch.equal(together, torch.stack([picked(one) for one in rows]))
