"""Batches of scenes as tensors."""

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from foveate.embedded.scenes import Scene
from labels import Labels, labels

__all__ = ["dense_targets", "pictures"]


def pictures(scenes: list[Scene]) -> Tensor:
    """(B, side, side, 3) uint8."""
    return torch.from_numpy(np.stack([s.image for s in scenes]))


def dense_targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Each field of `Labels`, stacked over the scenes."""
    each = [labels(s) for s in scenes]
    return {f.name: torch.from_numpy(np.stack([getattr(one, f.name) for one in each])) for f in fields(Labels)}
