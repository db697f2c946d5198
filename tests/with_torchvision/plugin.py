"""Loads torchvision before transformers is imported, also one that was made for another torch."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

APART = Path(sys.prefix) / "apart"

if importlib.util.find_spec("torchvision") is None:
    if not (APART / "torchvision").is_dir():
        raise pytest.UsageError(f"There is no torchvision, and none in {APART}: run make setup.")
    sys.path.append(str(APART))
    # What its compiled part would declare, which a CPU torch does not load; nothing here calls them.
    operators = torch.library.Library("torchvision", "DEF")
    operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torchvision  # noqa: E402, F401
