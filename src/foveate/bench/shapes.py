"""Named shapes: models of real sizes with random weights, since weights do not change speed at a fixed schedule."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from foveate.errors import UnknownNameError

__all__ = ["Shape", "shape", "shapes"]

SHAPES = Path(__file__).with_name("shapes.json")


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, and what its usual picture and frame are.

    Attributes:
        name: What the user calls it.
        of: Which checkpoint has these sizes.
        config: Of transformers, as plain values.
        image: Of one picture, `tokens`, and either `pixels` (crops in front, if it is cut into them, with the `size` in
            pixels) or the `grid` of its patches; None if the shape is for video.
        frame: The same of one frame of a video, how many `frames` there usually are, and tokens `more` a video.
        arithmetic: Whether it is too large for anything but arithmetic.
    """

    name: str
    of: str
    config: dict[str, Any]
    image: dict[str, Any] | None = None
    frame: dict[str, Any] | None = None
    arithmetic: bool = False

    def make_config(self) -> Any:
        """The config of transformers."""
        settings = {name: value for name, value in self.config.items() if name != "model_type"}
        return AutoConfig.for_model(self.config["model_type"], **settings)

    def build(self, device: torch.device, dtype: torch.dtype, attention: str = "auto", seed: int = 0) -> Any:
        """The model with random weights, made on the device in the dtype, in evaluation mode."""
        torch.manual_seed(seed)
        settings = {} if attention == "auto" else {"attn_implementation": attention}
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(self.make_config(), dtype=dtype, **settings)
        model.generation_config.eos_token_id = None  # answers have a fixed length
        model.generation_config.pad_token_id = 0
        return model.eval()


@cache
def shapes() -> dict[str, Shape]:
    """Every shape by its name."""
    return {name: Shape(name, **values) for name, values in json.loads(SHAPES.read_text(encoding="utf-8")).items()}


def shape(name: str) -> Shape:
    """The shape of this name.

    Raises:
        UnknownNameError: If there is none; the message lists those there are.
    """
    if name not in shapes():
        raise UnknownNameError(f"No shape {name!r}. There are: {', '.join(shapes())}.")
    return shapes()[name]
