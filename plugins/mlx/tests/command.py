"""Runs foveate-mlx on foveate's embedded model: `python command.py METHOD …`.

On transformers 5.24, mlx-vlm's LLaVA processor fails without foveate too: it hands `padding` to the image processor,
which refuses it. Here it does not, and CLIP's activation is that of the embedded model.
"""

import sys

import mlx.nn as nn
from mlx_vlm.models.llava import vision
from transformers.image_processing_utils import BaseImageProcessor

from foveate_mlx.__main__ import main

STOCK = BaseImageProcessor.__call__


def process(self, images, *args, padding=None, **kwargs):
    """Process pictures without `padding`."""
    return STOCK(self, images, *args, **kwargs)


def activate(self, x):
    """The tower's MLP with tanh GELU."""
    return self.fc2(nn.gelu_approx(self.fc1(x)))


if __name__ == "__main__":
    BaseImageProcessor.__call__, vision.MLP.__call__ = process, activate
    sys.exit(main())
