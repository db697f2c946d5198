"""Thinning, compared with loops in double precision."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from foveate.core.thin import (
    ends_of_left,
    give_back,
    nearest_kept,
    neighbour_difference,
    sizes,
    sizes_in_segments,
    spread_in_steps,
)

SEEDS = st.integers(0, 2**20)


def drawn(count, seed, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def looped_picks(rows, count, steps):
    unit = torch.nn.functional.normalize(rows.detach().double(), dim=1)
    apart = ((1 - unit @ unit.T) * 2**20).round()  # as exact: two rows that are each other's nearest tie
    others = [min((float(apart[j, i]) for i in range(len(rows)) if i != j), default=math.inf) for j in range(len(rows))]
    picks = [max(range(len(rows)), key=lambda j: others[j])]
    while len(picks) < count:
        away = {j: min(float(apart[j, i]) for i in picks) for j in range(len(rows)) if j not in picks}
        few = min(math.ceil(count / steps), count - len(picks))
        picks += sorted(away, key=lambda j: (-away[j], j))[:few]
    return sorted(picks)


def looped_parents(rows, kept):
    rows, kept = rows.detach().double(), kept.tolist()
    widths = []
    for j, row in enumerate(rows):
        away = [0.0 if i == j else float((row - rows[i]).square().sum()) for i in kept]
        widths.append(kept.index(j) if j in kept else min(range(len(kept)), key=lambda place: away[place]))
    return widths


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.integers(1, 40), st.floats(0.01, 1), st.sampled_from([1, 2, 5, 64]))
def test_the_picks_are_those_of_a_loop(seed, count, share, steps):
    rows, left = drawn(count, seed), max(1, round(share * count))
    assert spread_in_steps(rows, left, steps).tolist() == looped_picks(rows, left, steps)


def test_picks_worked_out_on_paper():
    """At these angles; 70 has the farthest nearest other one. Then 180 is farthest, then 0 before 10."""
    angles = torch.tensor([0.0, 10.0, 70.0, 175.0, 180.0]).deg2rad()
    rows = torch.stack((angles.cos(), angles.sin()), dim=1)
    assert [spread_in_steps(rows, count).tolist() for count in (1, 2, 3)] == [[2], [2, 4], [0, 2, 4]]
    assert spread_in_steps(rows, 4, steps=2).tolist() == [0, 2, 3, 4]  # 180 and 175 in one step, then 0


def test_rows_that_are_equal_tie_and_the_lower_ones_are_picked():
    rows = torch.tensor([[3.0, 1.0]]).repeat(9, 1) * torch.arange(1, 10)[:, None]
    assert spread_in_steps(rows, 4).tolist() == [0, 1, 2, 3]
    assert nearest_kept(torch.ones(4, 3), torch.tensor([1, 3])).tolist() == [0, 0, 0, 1]


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(1, 30), st.integers(1, 30))
def test_each_row_goes_with_the_nearest_and_sizes_sum_to_the_segment(seed, count, left):
    rows = drawn(count, seed)
    kept = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:left].sort().values
    parent = nearest_kept(rows, kept)
    assert parent.tolist() == looped_parents(rows, kept)
    stands_for = sizes(parent, len(kept))
    assert stands_for.sum() == count
    assert stands_for.min() >= 1
    counted = torch.arange(count) % 3 > 0
    assert sizes(parent, len(kept), counted).sum() == counted.sum()


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=6), st.floats(0, 1))
def test_sizes_in_other_segments_are_those_of_a_loop(seed, lengths, share):
    rows = drawn(sum(lengths), seed)
    stays = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed + 1)) < share
    stays[0] = True
    kept, wanted, start = stays.nonzero()[:, 0], [], 0
    for length in lengths:
        inside = kept[(kept >= start) & (kept < start + length)] - start
        if len(inside):  # a window may have kept none
            parents = looped_parents(rows[start : start + length], inside)
            wanted += [parents.count(place) for place in range(len(inside))]
        start += length
    assert sizes_in_segments(rows, kept, lengths).tolist() == wanted


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 1), (2, 2), (3, 4)])
def test_neighbours_are_those_in_the_grid(grid):
    rows = drawn(grid[0] * grid[1], 3)
    unit = torch.nn.functional.normalize(rows.double(), dim=1).view(*grid, -1)
    wanted = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            inside = [at for at in beside if 0 <= at[0] < grid[0] and 0 <= at[1] < grid[1]]
            cosines = [float(unit[row, column] @ unit[at]) for at in inside]
            wanted.append(1 - sum(cosines) / max(1, len(cosines)))
    torch.testing.assert_close(neighbour_difference(rows, grid), torch.tensor(wanted), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_come_back_and_move_as_far_as_the_one_they_went_with(dtype):
    before = drawn(2 * 7, 5).view(2, 7, -1).to(dtype)
    kept, parent = torch.tensor([[1, 4], [0, 6]]), torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
    behind = drawn(4, 6).view(2, 2, -1).to(dtype)
    full = give_back(before, behind, kept, parent)
    assert full.dtype == dtype
    for sample in range(2):
        for j in range(7):
            place = int(parent[sample, j])
            went_with = before[sample, kept[sample, place]]
            if j in kept[sample]:
                assert torch.equal(full[sample, j], behind[sample, place])
            else:
                moved = before[sample, j].double() + (behind[sample, place].double() - went_with.double())
                torch.testing.assert_close(full[sample, j], moved.to(dtype), atol=1e-5, rtol=1e-2)


def test_ends_of_what_is_left():
    stays = torch.tensor([True, True, False, False, True, False])
    assert ends_of_left(torch.tensor([0, 2, 4, 6]), stays).tolist() == [0, 2, 3]
