"""Merging: which tokens become one, and what it is."""

from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.core.attention import BLOCK_NUMBERS
from foveate.core.rank import top
from foveate.errors import ShapeError

__all__ = [
    "Merge",
    "average",
    "dominant_and_contextual",
    "merge_windows",
    "target_plus_mean",
    "window_similarity",
]


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """What becomes of some tokens.

    Attributes:
        origin: (rows,) int64, the token each new row stands for, in row order.
        assign: (tokens,) int64, the row each token went into; −1 if it was dropped.
        rows: (rows, width), what the rows are, where that has been worked out.
    """

    origin: Tensor
    assign: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return self.origin.shape[0]

    def to(self, device: torch.device) -> "Merge":
        """The same on another device."""
        return Merge(self.origin.to(device), self.assign.to(device))


def dominant_and_contextual(scores: Tensor, metric: Tensor, dominant: int, contextual: int) -> Merge:
    """Keep the highest scored tokens, and let every other one join one of a few among the rest.

    The `contextual` targets are spread over the rest in order (every step-th one, step = rest // contextual); a token
    joins the target with the largest cosine of `metric`, the first such. The primitive of VisionZip (Yang et al.,
    arXiv:2412.04467) and VisionDrop (Xu et al., arXiv:2506.22283), without a loop over tokens.

    Args:
        scores: (tokens,) float; larger stays.
        metric: (tokens, size) float, what similarity is measured on.
        dominant: How many stay as they are.
        contextual: How many rows the rest becomes; fewer if the rest is smaller, and with 0 it is dropped.

    Returns:
        Dominant tokens ascending, then targets ascending.
    """
    kept = top(scores, dominant)
    is_rest = torch.ones_like(scores, dtype=torch.bool)
    is_rest[kept] = False
    # As many as known: no synchronisation with the device.
    rest = torch.sort(is_rest.logical_not().long(), stable=True).indices[: len(scores) - dominant]
    contextual = min(contextual, len(rest))
    assign = torch.full_like(scores, -1, dtype=torch.int64)
    assign[kept] = torch.arange(dominant, device=scores.device)
    if contextual == 0:
        return Merge(kept, assign)
    step = max(1, len(rest) // contextual)
    targets = torch.arange(contextual, device=scores.device) * step
    unit = metric[rest].float()
    unit = unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp(min=1e-6)
    # A block of rows at a time: both numbers grow with the image.
    nearest = torch.cat([_most_like(part, unit[targets]) for part in unit.split(max(1, BLOCK_NUMBERS // contextual))])
    nearest[targets] = torch.arange(contextual, device=scores.device)
    assign[rest] = nearest + dominant
    return Merge(torch.cat((kept, rest[targets])), assign)


def _most_like(rows: Tensor, targets: Tensor) -> Tensor:
    """The first of the targets most like each row: (rows,) int64."""
    similarity = rows @ targets.T
    return (similarity == similarity.amax(dim=1, keepdim=True)).int().argmax(dim=1)


def target_plus_mean(rows: Tensor, merge: Merge) -> Tensor:
    """Each new row: the token it stands for plus the mean of those that joined it, (rows, width), dtype of `rows`.

    A sum, as the released code of both methods has it, not an average: the norm of a merged row about doubles.
    """
    base = rows[merge.origin].float()
    total, count = _joined(rows, merge)
    return (base + (total - base) / (count - 1).clamp(min=1)[:, None]).to(rows.dtype)


def average(rows: Tensor, merge: Merge) -> Tensor:
    """Each new row: the mean of the token it stands for and those that joined it, (rows, width), dtype of `rows`."""
    total, count = _joined(rows, merge)
    return (total / count.clamp(min=1)[:, None]).to(rows.dtype)


def _joined(rows: Tensor, merge: Merge) -> tuple[Tensor, Tensor]:
    """Sum (float32) and number of the tokens in every new row, the one it stands for among them."""
    went = merge.assign.clamp(min=0)
    weight = (merge.assign >= 0).float()
    total = rows.new_zeros(len(merge), rows.shape[1], dtype=torch.float32)
    if not len(merge):
        return total, total.new_zeros(0)
    total = total.scatter_add(0, went[:, None].expand_as(rows), rows.float() * weight[:, None])
    return total, total.new_zeros(len(merge)).scatter_add(0, went, weight)


def window_similarity(rows: Tensor, height: int, width: int, window: int) -> Tensor:
    """Mean cosine over all pairs inside each non-overlapping window: (windows,) float32 in raster order.

    `rows` is a grid in raster order, (height · width, size); windows tile its top left part.
    """
    unit = rows.float()
    unit = unit / torch.linalg.vector_norm(unit, dim=-1, keepdim=True).clamp(min=1e-12)
    members = unit[_window_members(height, width, window, rows.device)]  # (windows, tokens of one, size)
    count = members.shape[1]
    pairs = members @ members.transpose(1, 2)
    others = pairs.sum(dim=(1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(dim=1)
    mean: Tensor = others / (count * (count - 1))
    return mean


def merge_windows(similarity: Tensor, merged: Tensor, height: int, width: int, window: int) -> Merge:
    """Make one token of each of the `merged` most similar windows: these first, by falling similarity, then the tokens
    outside them in order. A merged row stands for its window's centre. Ties go to the earlier window.

    Shapes do not depend on values: `origin` has a place for every token, and what stands behind the rows means nothing.
    An example: a 2 x 4 grid, windows of 2 x 2, of which the second is merged.

        assign   1 2 0 0 | 3 4 0 0          origin   6, 0, 1, 4, 5, then nothing

    Args:
        similarity: (windows,) float32 in raster order.
        merged: How many, an int64 tensor without dimensions.
        height, width: Of the grid.
        window: Side of a window.
    """
    members = _window_members(height, width, window, similarity.device)
    tokens, joined = height * width, members.shape[1]
    members = members[torch.sort(similarity, descending=True, stable=True).indices]
    places = torch.arange(tokens, device=members.device)
    ranks = places[: len(members)]
    apart = ranks >= merged
    rank = ranks.masked_fill(apart, -1)[:, None].expand_as(members)
    assign = torch.full_like(places, -1).scatter(0, members.flatten(), rank.flatten())
    alone = assign < 0
    assign = torch.where(alone, alone.cumsum(0) + (merged - 1), assign)
    # Every member of a merged window writes itself into its row; the centre has the last word.
    origin = torch.zeros_like(places).scatter(0, assign, places)
    centres = torch.where(apart, origin[: len(members)], members[:, joined // 2])
    return Merge(origin.scatter(0, ranks, centres), assign)


def _window_members(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """Tokens of each window: (windows, window²) int64, windows and members in raster order."""
    if window < 1 or height < window or width < window:
        raise ShapeError(f"A {height} x {width} grid holds no window of {window} x {window}.")
    grid = torch.arange(height * width, device=device).view(height, width)
    grid = grid[: height // window * window, : width // window * window]
    tiles: Tensor = grid.unfold(0, window, window).unfold(1, window, window)
    return tiles.reshape(-1, window * window)
