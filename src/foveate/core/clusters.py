"""Clusters: which of some rows belong together, around the densest of them."""

import torch
from torch import Tensor

from foveate.errors import ShapeError

__all__ = ["density_peaks"]

EXACT = 4096  # rows up to which distances are float64: a swapped near tie changes every cluster


def density_peaks(rows: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Clusters around density peaks (DPC-kNN), without randomness.

    With d the distances over the square root of the width: a row's density is exp(−mean d² to its `clusters` nearest
    rows, itself among them), its separation the distance to the nearest denser row, or the largest distance of all if
    none is denser. The rows with the largest density times separation are centres, and every other row joins the
    nearest centre. Ties go to the lower index: of rows of one density the lower counts as denser. (With two clusters,
    two rows that are nearest to each other always tie.) Density peaks: Rodriguez & Laio, Science 2014; with nearest
    neighbours: Du et al., Knowledge-Based Systems 2016.

    Args:
        rows: (rows, width), any float dtype.
        clusters: How many, 1 or more.

    Returns:
        Centres, (clusters,) int64, the highest peak first; and the cluster of each row, (rows,) int64.

    Raises:
        ShapeError: If there are fewer rows than clusters, or no cluster.
    """
    count, width = rows.shape
    if not 1 <= clusters <= count:
        raise ShapeError(f"Cannot make {clusters} clusters of {count} rows.")
    squared = _squared_distances(rows) / width
    nearest = squared.sort(dim=1).values[:, :clusters]
    density = torch.exp(-nearest.mean(dim=1))
    distance = squared.sqrt()
    # Row i, column j: whether j is denser than i.
    denser = density[None, :] > density[:, None]
    lower = torch.ones_like(distance, dtype=torch.bool).tril(-1)
    denser = denser | ((density[None, :] == density[:, None]) & lower)
    separation = torch.where(denser, distance, distance.max()).amin(dim=1)
    peaks = (density * separation).sort(descending=True, stable=True).indices[:clusters]
    # Of equal distances `argmin` may give any: among 0s and 1s, sorted stably, the first 1 is the lowest centre.
    to_centres = distance[:, peaks]
    is_nearest = to_centres == to_centres.amin(dim=1, keepdim=True)
    cluster = is_nearest.long().sort(dim=1, descending=True, stable=True).indices[:, 0]
    return peaks, cluster.scatter(0, peaks, torch.arange(clusters, device=rows.device))


def _squared_distances(rows: Tensor) -> Tensor:
    """|a − b|² of all pairs: (rows, rows)."""
    rows = rows.to(torch.float64 if len(rows) <= EXACT else torch.float32)
    rows = rows - rows.mean(dim=0)  # distances stay, and less is lost in the difference below
    products = rows @ rows.T
    lengths = (rows * rows).sum(dim=1)
    # Both halves of the products are added, so that a is exactly as far from b as b is from a.
    squared = (lengths[:, None] + lengths[None, :] - (products + products.T)).clamp(min=0)
    apart = 1 - torch.eye(len(rows), dtype=squared.dtype, device=squared.device)
    return squared * apart
