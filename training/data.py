"""Batches of scenes as tensors."""

import numpy as np
import torch
from torch import Tensor

from foveate.embedded.scenes import Scene
from labels import labels

__all__ = ["dense_targets", "pictures"]


def pictures(scenes: list[Scene]) -> Tensor:
    """(B, side, side, 3) uint8."""
    return torch.from_numpy(np.stack([s.image for s in scenes]))


def dense_targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Each field of `Labels`, stacked over the scenes."""
    each = [labels(s) for s in scenes]
    names = ("shape", "colour", "character", "order", "centre", "xy", "present")
    return {name: torch.from_numpy(np.stack([getattr(one, name) for one in each])) for name in names}
