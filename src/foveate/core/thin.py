"""Thinning a vision tower: which rows run, how many rows each of them stands for, and how the others are restored.

All functions but `sizes_in_segments` are for one segment, a set of rows that attend to one another. Distances are
computed in float32, one block of rows at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.graphs import as_graph
from foveate.core.grid import Grid
from foveate.core.merge import of_length_one
from foveate.core.picks import pairs
from foveate.core.tensors import alike, blocks, send, without_autocast

STEPS = 64  # steps of greedy picks; one pick a step would be 1,332 launches for 3,996 rows
LEVELS = 2.0**20  # distances are rounded to multiples of 1 / LEVELS, so that rows that differ by rounding tie


@as_graph
def spread_in_steps(rows: Tensor, count: int, steps: int = STEPS) -> Tensor:
    """Greedy max-min picks, several a step. Distance is 1 − cosine, and ties go to the lower index.

    The first pick is the row whose nearest other row is farthest. Each step then picks, all at once, the ⌈count /
    steps⌉ rows whose nearest pick is farthest. The last step picks the rest.

    Args:
        rows: (rows, width) of any float dtype.
        count: How many to pick, from 1 to all.
        steps: Most steps after the first pick.

    Returns:
        (count,) int64, ascending.
    """
    apart = pairs(rows, lambda cosines, _: ((1 - cosines) * LEVELS).round().relu())  # in whole LEVELS
    places = torch.arange(len(rows), device=rows.device)
    lonely = []
    for part in blocks(places, len(places)):
        itself = part[:, None] == places
        lonely.append(apart[part].masked_fill(itself, float("inf")).amin(dim=1))
    pick = torch.cat(lonely).argmax(dim=0, keepdim=True)
    picks, left = [pick], count - 1
    nearest_pick = torch.full_like(rows[:, 0], float("inf"), dtype=torch.float32)
    each = -(-count // steps)
    while left:
        for part in blocks(pick, len(places)):
            nearest_pick = torch.minimum(nearest_pick, apart[part].amin(dim=0))
        nearest_pick = nearest_pick.index_fill(0, pick, -1.0)  # below every distance, so no row is picked twice
        few = min(each, left)
        pick = nearest_pick.sort(descending=True, stable=True).indices[:few]
        picks.append(pick)
        left -= few
    return torch.cat(picks).sort().values


def neighbour_difference(rows: Tensor, grid: Grid) -> Tensor:
    """1 − the mean cosine of each row with the rows above, below, left and right of it in its grid: (rows,) float32.

    Args:
        rows: (rows, width) of any float dtype, in raster order.
        grid: Rows and columns. Rows at the edges have fewer neighbours; a row without neighbours has 1.
    """
    unit = of_length_one(rows).view(*grid, -1)
    cosines, neighbours = torch.zeros_like(unit[..., 0]), torch.zeros_like(unit[..., 0])
    for dim in (0, 1):
        length = grid[dim]
        first, second = unit.narrow(dim, 0, length - 1), unit.narrow(dim, 1, length - 1)
        beside = (first * second).sum(dim=-1)  # cosine of each row and the row below it, or on its right
        ends = torch.zeros_like(cosines.narrow(dim, 0, 1))
        ones = torch.ones_like(beside)
        cosines = cosines + torch.cat((beside, ends), dim) + torch.cat((ends, beside), dim)
        neighbours = neighbours + torch.cat((ones, ends), dim) + torch.cat((ends, ones), dim)
    return (1 - cosines / neighbours.clamp(min=1)).mul(LEVELS).round().flatten() / LEVELS


@without_autocast
def nearest_kept(rows: Tensor, kept: Tensor) -> Tensor:
    """The kept row that is nearest to each row, by Euclidean distance: (rows,) int64, places in `kept`.

    A kept row is nearest to itself, and ties go to the lower place. Rows that differ only by rounding tie, as in flat
    parts of an image.

    Args:
        rows: (rows, width) of any float dtype.
        kept: (kept,) int64, at least one.
    """
    rows = rows.float()
    rows = rows - rows.mean(dim=0)  # distances do not change, and subtracting squares loses less precision
    targets = rows[kept]
    squares = targets.square().sum(dim=1)
    level = rows.square().sum(dim=1).amax().clamp(min=1e-30) / LEVELS
    places = [
        (squares - 2 * (part @ targets.T)).div(level).round().argmin(dim=1) for part in blocks(rows, len(targets))
    ]
    return torch.cat(places).scatter(0, kept, torch.arange(len(targets), device=kept.device))


def sizes(parent: Tensor, count: int, counted: Tensor | None = None) -> Tensor:
    """Number of rows that each kept row stands for: (count,) float32.

    Args:
        parent: Which kept row each row is assigned to, (rows,) int64.
        count: Number of kept rows.
        counted: Which rows count, (rows,) bool. None: all.
    """
    ones = torch.ones_like(parent, dtype=torch.float32) if counted is None else counted.float()
    return torch.zeros_like(ones[:1]).expand(count).scatter_add(0, parent, ones)


@without_autocast
def sizes_in_segments(rows: Tensor, kept: Tensor, lengths: Sequence[int]) -> Tensor:
    """Number of rows of its segment that each kept row stands for, in segments other than those of the picks.

    A window that has no kept row has no effect, because nothing attends in it.

    Args:
        rows: (rows, width), all segments in order.
        kept: (kept,) int64, ascending.
        lengths: Number of rows in each segment.

    Returns:
        (kept,) float32.
    """
    is_kept = torch.zeros(len(rows), dtype=torch.bool, device=rows.device).index_fill(0, kept, True)
    stands_for = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    for some in alike(lengths):
        length = lengths[some[0]]
        places = send(ends[some, None] + torch.arange(length), rows.device)  # (segments, rows of each)
        for part in blocks(places, length**2):
            here = rows[part].float()
            here = here - here.mean(dim=1, keepdim=True)
            stays = is_kept[part]
            # |a − b|² without |a|², which is equal for all candidates b: (segments, rows, rows), inf if b is not kept.
            squares = here.square().sum(dim=-1).masked_fill(~stays, float("inf"))
            nearest_kept = (squares[:, None] - 2 * (here @ here.mT)).argmin(dim=2)
            nearest_kept = torch.where(stays, torch.arange(length, device=rows.device), nearest_kept)
            counts = torch.zeros_like(squares).scatter_add(1, nearest_kept, torch.ones_like(squares))
            stands_for = stands_for.index_put((part,), counts)
    return stands_for[kept]


def ends_of_left(ends: Tensor, patches: Tensor) -> Tensor:
    """Ends of segments, with a leading 0, after patches have left. A segment that has lost all patches disappears.

    Ends 0 2 4 6 and patches 1 1 0 0 1 0 (stay) give 0 2 3.

    Args:
        ends: The ends before, (segments + 1,).
        patches: Which patches stay, (patches,) bool.
    """
    left_before = pad(patches.cumsum(0), (1, 0))  # how many patches stay before each place: 0 1 2 2 2 3 3
    left: Tensor = torch.unique_consecutive(left_before[ends])
    return left.to(torch.int32)


def give_back(before: Tensor, behind: Tensor, kept: Tensor, parent: Tensor) -> Tensor:
    """Restore all rows after the blocks that only the kept rows ran through: each row moves as far as its parent did.

    Args:
        before: (…, rows, width), the input of the first of these blocks.
        behind: (…, kept, width), the kept rows after the last block.
        kept: (…, kept) int64, the indices of the kept rows.
        parent: (…, rows) int64, the place in `kept` that each row is assigned to.

    Returns:
        (…, rows, width) of the dtype of `behind`. Kept rows are those of `behind`, bit for bit.
    """
    places = kept[..., None].expand_as(behind)
    moved = behind.float() - before.gather(-2, places).float()  # y_i − h_i of the kept rows
    moved = moved.gather(-2, parent[..., None].expand_as(before))  # (…, rows, width): that of each row's parent
    return (before.float() + moved).to(behind.dtype).scatter(-2, places, behind)
