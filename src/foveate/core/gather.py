"""Rows picked along a dimension, by places that are broadcast."""

import torch
from torch import Tensor

__all__ = ["take_along"]


def take_along(tensor: Tensor, places: Tensor, dim: int) -> Tensor:
    """As `torch.take_along_dim`, for places from 0 on: without a copy of all places to wrap negative ones.

    An example: (samples, rows, width) and places (samples, few, 1), dim=1 -> (samples, few, width).
    """
    sizes, indices = list(tensor.shape), list(places.shape)
    # All dimensions but this one are broadcast against each other.
    sizes[dim] = indices[dim] = 1
    common = list(torch.broadcast_shapes(sizes, indices))  # type: ignore[no-untyped-call]
    common[dim] = tensor.shape[dim]
    source = tensor.expand(common)
    common[dim] = places.shape[dim]
    return source.gather(dim, places.expand(common))
