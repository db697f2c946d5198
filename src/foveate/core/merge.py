"""Merging: which tokens become one row, and the value of that row.

Which tokens is a cut without rows. `average` and `target_plus_mean` compute rows for it from any value that tokens
have: features, scores, keys.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from foveate.core.cut import Cut, look_up
from foveate.core.grid import Grid, crops_of
from foveate.core.rank import put_marked_first, ranks_in_groups, share_out, top
from foveate.core.tensors import blocks
from foveate.errors import ShapeError


def dominant_and_contextual(scores: Tensor, metric: Tensor, dominant: int, contextual: int) -> Cut:
    """Keep the highest scored tokens, and merge every other token into one of a few targets.

    The `contextual` targets are every step-th one of the other tokens, step = rest // contextual. A token joins the
    target with the largest cosine of `metric`; ties go to the first. The primitive of VisionZip (Yang et al.,
    arXiv:2412.04467) and VisionDrop (Xu et al., arXiv:2506.22283), without a loop over tokens.

    Args:
        scores: (tokens,) float; larger stays.
        metric: (tokens, size) float, the features that similarity is measured on.
        dominant: How many tokens stay unchanged.
        contextual: How many rows the rest becomes. Fewer if the rest is smaller; with 0 the rest is dropped.

    Returns:
        A cut whose rows are the dominant tokens ascending, then the targets ascending.
    """
    kept = top(scores, dominant)
    is_rest = torch.ones_like(scores, dtype=torch.bool).index_fill(0, kept, False)
    rest = put_marked_first(is_rest)[: len(scores) - dominant]
    contextual = min(contextual, len(rest))
    parent = torch.full_like(scores, -1, dtype=torch.int64)
    parent[kept] = torch.arange(dominant, device=scores.device)
    if contextual == 0:
        return Cut.join(kept, parent)
    step = max(1, len(rest) // contextual)
    targets = torch.arange(contextual, device=scores.device) * step
    unit = of_length_one(metric[rest], least=1e-6)
    # One block of rows at a time, because both dimensions of the similarities grow with the image.
    nearest = torch.cat([first_most(block @ unit[targets].T) for block in blocks(unit, contextual)])  # (rest,)
    nearest[targets] = torch.arange(contextual, device=scores.device)
    parent[rest] = nearest + dominant
    return Cut.join(torch.cat((kept, rest[targets])), parent)


def dominant_and_contextual_by_crop(
    grids: Sequence[Grid], scores: Tensor, metric: Tensor, dominant: int, contextual: int
) -> Cut:
    """`dominant_and_contextual` for each crop.

    A crop gets its share of rows by its tokens, and its share of dominant rows by its rows.

    Args:
        grids: See `foveate.core.grid.crops_of`.
        scores, metric, dominant, contextual: See `dominant_and_contextual`. The rows of all crops must not exceed the
            tokens.
    """
    crops = crops_of(grids, len(scores))
    rows_of = share_out(dominant + contextual, [len(crop) for crop in crops])
    dominant_of = share_out(dominant, rows_of)
    parent = torch.full((len(scores),), -1, device=scores.device)
    sources, places, row = [], [], 0
    for crop, rows, high in zip(crops, rows_of, dominant_of, strict=True):
        tokens = crop.to(scores.device)
        cut = dominant_and_contextual(scores[tokens], metric[tokens], high, rows - high)
        source = tokens[cut.source]
        sources.append(source)
        # Order of all rows: dominant ones in raster order, then contextual ones.
        behind = torch.arange(row, row + len(source) - high, device=tokens.device) + len(scores)
        places.append(torch.cat((source[:high], behind)))
        parent = parent.scatter(0, tokens, torch.where(cut.parent < 0, -1, cut.parent + row))
        row += len(source)
    order = torch.cat(places).argsort()  # (rows,): the old row at each new place; its argsort is the inverse
    return Cut.join(torch.cat(sources)[order], look_up(parent, order.argsort()))


def bipartite(metric: Tensor, count: int) -> Cut:
    """Merge the best edges between tokens at even and at odd places, until `count` rows or no edges are left.

    Each token at an even place has an edge to the one at an odd place with the largest cosine of `metric`; ties go to
    the first. Edges merge by falling cosine, ties by index. The primitive of ToMe (Bolya et al., arXiv:2210.09461), in
    which at most half of the tokens can merge at a time. Rows are in its order, which decides what merges in the next
    round: unmerged tokens of even places by falling cosine, then the tokens of odd places.

    Args:
        metric: (tokens, size) float.
        count: Number of rows to leave, at least 1.
    """
    tokens = len(metric)
    edges = min(tokens // 2, tokens - count)
    unit = of_length_one(metric)
    even, odd = unit[0::2], unit[1::2]
    nearest, cosine = [], []
    # One block of rows at a time, because both dimensions of the similarities grow with the image.
    for block in blocks(even, len(odd)):
        target = first_most(block @ odd.T)
        nearest.append(target)
        cosine.append((block * odd[target]).sum(dim=1))
    alone = torch.cat(cosine).sort(descending=True, stable=True).indices[edges:]
    row = torch.arange(tokens - edges, device=metric.device)
    # Of six tokens, 0 merges into 3. The rows are tokens 4 2 1 3 5: tokens 0 2 4 go into rows 3 1 0, and tokens
    # 1 3 5 into rows 2 3 4.
    of_even = (torch.cat(nearest) + len(alone)).scatter(0, alone, row[: len(alone)])
    of_odd = row[len(alone) :]
    place = torch.arange(tokens, device=metric.device)
    parent = torch.cat((of_even, of_odd))[place // 2 + place % 2 * len(even)]
    return Cut.join(torch.cat((alone * 2, (of_odd - len(alone)) * 2 + 1)), parent)


def by_first_token(cut: Cut) -> Cut:
    """Let each row of a cut stand for the first token in it, and sort the rows by that. No token may be dropped."""
    place = torch.arange(len(cut.parent), device=cut.parent.device)
    # Parents 1 0 1 of three tokens give first 1 0, so rows are swapped: sources 0 1, and parents 0 1 0.
    first = torch.full_like(cut.source, len(place)).scatter_reduce(0, cut.parent, place, "amin")
    source, order = first.sort()
    return Cut.join(source, order.argsort()[cut.parent])


def by_source(cut: Cut) -> Cut:
    """Sort the rows of a cut by the tokens that they stand for."""
    source, order = cut.source.sort(stable=True)
    assert cut.rows is not None
    return Cut.merge(source, cut.rows[order], look_up(cut.parent, order.argsort()), cut.notes)


def join_to_nearest(metric: Tensor, kept: Tensor, joins: Tensor) -> Cut:
    """Keep some tokens, in order, and merge others into the most similar one of them, by the cosine of `metric`.

    Args:
        metric: (tokens, size) float.
        kept: (rows,) int64, ascending, at least one.
        joins: (tokens,) bool: tokens that are merged if not kept, and that may receive others if kept. All other
            tokens stay alone if kept, and are dropped if not.
    """
    unit = of_length_one(metric, least=1e-6)
    rows = torch.arange(len(kept), device=kept.device)
    # A kept token that may not be joined is never a target: its similarity is lowered below every cosine.
    lowered = torch.where(joins[kept], 0.0, -4.0)
    nearest = torch.cat([first_most(block @ unit[kept].T + lowered) for block in blocks(unit, len(kept))])
    parent = torch.where(joins, nearest, -1).scatter(0, kept, rows)  # a kept token goes into its own row
    return Cut.join(kept, parent)


def sum_of_nearest(values: Tensor, metric: Tensor, tokens: Tensor, count: int) -> Tensor:
    """For each of some tokens, the sum of the values of the `count` tokens nearest to it, itself excluded.

    Nearest by the cosine of `metric`; ties go to the lower index.

    Args:
        values: (all, width) float32.
        metric: (all, size) float.
        tokens: (some,) int64.
        count: How many neighbours; all others if there are fewer.

    Returns:
        (some, width) float32.
    """
    count = min(count, len(values) - 1)
    unit = of_length_one(metric)
    sums = [values.new_zeros(0, values.shape[1])]
    # One block of rows at a time, because both dimensions of the similarities grow with the image.
    for block in blocks(tokens, len(values)):
        similarity = unit[block] @ unit.T
        similarity = similarity.scatter(1, block[:, None], float("-inf"))
        nearest = torch.sort(similarity, dim=1, descending=True, stable=True).indices[:, :count]
        is_near = torch.zeros_like(similarity).scatter(1, nearest, 1.0)  # (block, all): 1 for the neighbours
        sums.append(is_near @ values)
    return torch.cat(sums)


def of_length_one(rows: Tensor, least: float = 1e-12, dtype: torch.dtype = torch.float32) -> Tensor:
    """Divide rows by their lengths, (rows, size) in this dtype. Rows shorter than `least` are divided by `least`."""
    rows = rows.to(dtype)
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    unit: Tensor = rows / length.clamp(min=least)
    return unit


def first_most(similarity: Tensor) -> Tensor:
    """The index of the largest value in each row, ties to the first: (…, targets) -> (…) int64."""
    # `argmax` may return any of several equal values; on 0s and 1s it returns the first 1.
    is_most = similarity == similarity.amax(dim=-1, keepdim=True)
    return is_most.int().argmax(dim=-1)


def target_plus_mean(rows: Tensor, cut: Cut) -> Tensor:
    """Each new row is the token it stands for plus the mean of those that joined it: (rows, width), dtype of `rows`.

    It is a sum, as in the released code of VisionZip and VisionDrop, not an average. The norm of a merged row about
    doubles.
    """
    base = rows[cut.source].float()
    total, count = _sum_of_joined(rows, cut)
    others = (total - base) / (count - 1).clamp(min=1)[:, None]  # mean of the tokens that joined; 0 if none did
    return (base + others).to(rows.dtype)


def average(rows: Tensor, cut: Cut) -> Tensor:
    """Each new row is the mean of the token it stands for and those that joined it: (rows, width), dtype of `rows`."""
    total, count = _sum_of_joined(rows, cut)
    return (total / count.clamp(min=1)[:, None]).to(rows.dtype)


def one_by_one(rows: Tensor, cut: Cut) -> Tensor:
    """Each new row when tokens join one after another, by index, and each time the mean of both is taken.

    For a and then b, c: ((a + b) / 2 + c) / 2, so the first tokens have the least weight. Shape (rows, width), dtype of
    `rows`.
    """
    place = torch.arange(len(rows), device=rows.device)
    joined_last = place.scatter(0, cut.source, -1)  # the token that a row stands for comes before all that joined
    behind = ranks_in_groups(joined_last, cut.parent)  # (tokens,): how many joined the same row later
    itself = torch.zeros_like(place).scatter(0, cut.source, 1)
    weighted = rows.float() * 0.5 ** (behind + 1 - itself)[:, None]
    total = rows.new_zeros(len(cut.source), rows.shape[1], dtype=torch.float32)
    return total.scatter_add(0, cut.parent[:, None].expand_as(weighted), weighted).to(rows.dtype)


def merge_rows(rows: Tensor, cut: Cut, how: Literal["sum", "average"], cls: Tensor | None = None) -> Cut:
    """Add the new rows: `target_plus_mean` ("sum") or `average`. A tower's CLS, (1, width), becomes row 0."""
    merged_rows = target_plus_mean(rows, cut) if how == "sum" else average(rows, cut)
    if cls is None:
        return cut.with_rows(merged_rows)
    # The CLS stands for no token, so its source is −1. Each token's row moves by one, and dropped tokens keep −1:
    # parent −1 0 1 1 becomes −1 1 2 2.
    source = torch.cat((cut.source.new_full((1,), -1), cut.source))
    parent = torch.where(cut.parent < 0, cut.parent, cut.parent + 1)
    return Cut.merge(source, torch.cat((cls.to(rows.dtype), merged_rows)), parent)


def towards(centres: Tensor, rows: Tensor, cluster: Tensor, least: float) -> Tensor:
    """Move centres towards the mean of the rows that joined them.

    w · centre + (1 − w) · mean with w = max(1 / (joined + 1), least).

    Args:
        centres: (clusters, width) float32. A centre that nothing joined does not move.
        rows: (rows, width) float32.
        cluster: The cluster that each row joins, (rows,) int64; −1: none.
        least: The centre's smallest weight.

    Returns:
        (clusters, width) float32.
    """
    joins = (cluster >= 0).float()
    row = cluster.clamp(min=0)
    joined = centres.new_zeros(len(centres)).scatter_add(0, row, joins)[:, None]
    total = torch.zeros_like(centres).scatter_add(0, row[:, None].expand_as(rows), rows * joins[:, None])
    weight = (1 / (joined + 1)).clamp(min=least)
    return weight * centres + (1 - weight) * total / joined.clamp(min=1)


def _sum_of_joined(rows: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Sum (float32) and number of the tokens in every new row, including the token it stands for."""
    count, width = len(cut.source), rows.shape[1]
    row = cut.parent.clamp(min=0)
    weight = (cut.parent >= 0).float()  # a dropped token goes into row 0 with weight 0
    total = rows.new_zeros(count, width, dtype=torch.float32)
    if not count:
        return total, total.new_zeros(0)
    row_of_each = row[:, None].expand_as(rows)
    total = total.scatter_add(0, row_of_each, rows.float() * weight[:, None])
    joined = total.new_zeros(count).scatter_add(0, row, weight)
    return total, joined


def window_similarity(rows: Tensor, height: int, width: int, window: int) -> Tensor:
    """Mean cosine over all pairs inside each non-overlapping window: (windows,) float32 in raster order.

    `rows` is a grid in raster order, (height · width, size). The windows tile its top left part.
    """
    unit = of_length_one(rows)
    members = unit[_window_members(height, width, window, rows.device)]  # (windows, tokens of one, size)
    count = members.shape[1]
    pairs = members @ members.transpose(1, 2)
    # Exclude the diagonal, so that only pairs of two different tokens count.
    with_itself = pairs.diagonal(dim1=1, dim2=2)
    others = pairs.sum(dim=(1, 2)) - with_itself.sum(dim=1)
    mean: Tensor = others / (count * (count - 1))
    return mean


def average_windows(
    rows: Tensor, similarity: Tensor, height: int, width: int, window: int, threshold: float
) -> Cut | None:
    """The means of the windows at least as similar as `threshold`, then the tokens outside them; None if none is.

    The most similar come first. See `merge_windows` for the arguments. The host waits for their number.
    """
    merged = int((similarity >= threshold).sum())  # host sync
    if not merged:
        return None
    cut = merge_windows(similarity, merged, height, width, window)
    return cut.with_rows(average(rows, cut))


def merge_windows(similarity: Tensor, merged: int, height: int, width: int, window: int) -> Cut:
    """Merge each of the `merged` most similar windows into one row.

    These rows come first, by falling similarity, then the tokens outside them in order. A merged row stands for its
    window's centre. Ties go to the earlier window.

    Example: a 2 x 4 grid with windows of 2 x 2, of which the second is merged.

        parent   1 2 0 0 | 3 4 0 0          source   6, 0, 1, 4, 5

    Args:
        similarity: (windows,) float32 in raster order.
        merged: Number of windows to merge.
        height, width: Size of the grid.
        window: Side of a window.
    """
    members = _window_members(height, width, window, similarity.device)
    joined = members[torch.sort(similarity, descending=True, stable=True).indices[:merged]]  # (merged, size)
    parent = torch.full((height * width,), -1, device=members.device)
    parent[joined] = torch.arange(merged, device=members.device)[:, None].expand_as(joined)
    # 17 merged windows of 9 tokens leave 576 − 9 · 17 = 423 tokens alone, which get the next rows.
    alone = put_marked_first(parent < 0)[: height * width - joined.numel()]
    parent[alone] = torch.arange(merged, merged + len(alone), device=members.device)
    return Cut.join(torch.cat((joined[:, window**2 // 2], alone)), parent)


def _window_members(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Tokens of each window: (windows, window²) int64, windows and members in raster order."""
    if window < 1 or height < window or width < window:
        raise ShapeError(
            f"A {height} x {width} grid is too small for a window of {window} x {window}. Use a smaller window."
        )
    grid = torch.arange(height * width, device=device).view(height, width)
    # Leave out the tokens below and on the right that do not fill a window.
    grid = grid[: height // window * window, : width // window * window]
    # (rows, columns) -> (down, across, window, window)
    tiles: Tensor = grid.unfold(0, window, window).unfold(1, window, window)
    return tiles.reshape(-1, window * window)


EXACT = 4096  # up to this many rows distances are float64, because swapping two close values changes every cluster


def density_peaks(rows: Tensor, clusters: int, neighbours: int | None = None) -> tuple[Tensor, Tensor]:
    """Cluster rows around density peaks (DPC-kNN), without randomness.

    Let d be the distances divided by the square root of the width. A row's density is exp(−mean d² to its `neighbours`
    nearest rows, itself included). Its separation is the distance to the nearest denser row, or the largest distance of
    all if no row is denser. The rows with the largest density times separation are centres, and every other row joins
    the nearest centre. Ties go to the lower index, which counts as denser. (With two clusters, two rows that are
    nearest to each other always tie.) Density peaks: Rodriguez & Laio, Science 2014; with nearest neighbours: Du et
    al., Knowledge-Based Systems 2016.

    Args:
        rows: (rows, width), any float dtype.
        clusters: Number of clusters, 1 or more.
        neighbours: Number of rows that a density is computed from. None: the number of clusters.

    Returns:
        Centres, (clusters,) int64, the highest peak first; and the cluster of each row, (rows,) int64.

    Raises:
        ShapeError: If there are fewer rows than clusters, or no cluster.
    """
    count = len(rows)
    if not 1 <= clusters <= count:
        raise ShapeError(f"Cannot make {clusters} clusters of {count} rows.")
    rows = rows.to(torch.float64 if count <= EXACT else torch.float32)
    rows = rows - rows.mean(dim=0)  # distances do not change, and the difference below loses less precision
    places = torch.arange(count, device=rows.device)
    parts, near = blocks(places, count), min(count, clusters if neighbours is None else neighbours)
    squares: Callable[[Tensor], Tensor] = partial(_squared_distances, rows)
    if len(parts) == 1:  # with several blocks, distances are computed anew in each of three passes
        squares = squares(places).__getitem__
    nearest = [squares(part).topk(near, dim=1, largest=False).values.mean(dim=1) for part in parts]
    density = torch.exp(-torch.cat(nearest))
    separation, farthest = [], []
    for part in parts:
        distance = squares(part).sqrt()
        # denser[i, j]: True if j is denser than i.
        denser = density > density[part, None]
        denser = denser | ((density == density[part, None]) & (places < part[:, None]))
        separation.append(torch.where(denser, distance, float("inf")).amin(dim=1))
        farthest.append(distance.amax())
    # The densest row has no denser one, so its separation is inf; use the largest distance.
    separated = torch.cat(separation).clamp(max=torch.stack(farthest).amax())
    peaks = (density * separated).sort(descending=True, stable=True).indices[:clusters]
    cluster = torch.cat([first_most(-squares(part)[:, peaks].sqrt()) for part in parts])
    return peaks, cluster.scatter(0, peaks, torch.arange(clusters, device=rows.device))


def _squared_distances(rows: Tensor, some: Tensor) -> Tensor:
    """|a − b|² / width of some rows from all rows: (some, rows)."""
    # Adding both orders of the product makes the distance from a to b exactly that from b to a.
    products = rows[some] @ rows.T
    products = products + (rows @ rows[some].T).T
    lengths = (rows * rows).sum(dim=1)
    squared = (lengths[some, None] + lengths - products).clamp(min=0) / rows.shape[1]
    return squared.masked_fill(some[:, None] == torch.arange(len(rows), device=rows.device), 0)
