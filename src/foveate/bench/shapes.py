"""Named shapes: models of real sizes with random weights, since weights do not change speed at a fixed schedule."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.loading import random_model
from foveate.errors import UnknownNameError
from foveate.plain.table import Column, Table

SHAPES = Path(__file__).with_name("shapes.json")


@dataclass(frozen=True, slots=True)
class NamedShape:
    """A model's sizes, and what its usual picture and frame are.

    Attributes:
        name: What the user calls it.
        of: Which checkpoint has these sizes.
        config: Of transformers, as plain values.
        image: Of one picture, `tokens`, and either `pixels` (crops in front, if it is cut into them, with the `size` in
            pixels) or the `grid` of its patches; None if the shape is for video.
        frame: The same of one frame of a video, how many `frames` there usually are, the `cells` (rows and columns of
            tokens) of a frame that is given in pixels, and tokens `more` a video.
    """

    name: str
    of: str
    config: dict[str, object]
    image: dict[str, object] | None = None
    frame: dict[str, Any] | None = None

    def make_config(self) -> PreTrainedConfig:
        """The config of transformers."""
        return AutoConfig.for_model(**self.config)

    def build(
        self, device: torch.device, dtype: torch.dtype, attention: str = "auto", seed: int = 0
    ) -> PreTrainedModel:
        """The model with random weights, made on the device in the dtype, in evaluation mode."""
        model = random_model(self.make_config(), device, dtype, attention=attention, seed=seed)
        model.generation_config.eos_token_id = None  # answers have a fixed length
        model.generation_config.pad_token_id = 0
        return model


@cache
def shapes() -> dict[str, NamedShape]:
    """Every shape by its name."""
    entries = json.loads(SHAPES.read_text(encoding="utf-8"))
    return {name: NamedShape(name, **values) for name, values in entries.items()}


def shape(name: str) -> NamedShape:
    """The shape of this name.

    Raises:
        UnknownNameError: If there is none; the message lists those there are.
    """
    if name not in shapes():
        raise UnknownNameError(f"No shape {name!r}. There are: {', '.join(shapes())}.")
    return shapes()[name]


def shape_sheet(shapes: Sequence[NamedShape]) -> Table:
    """Every shape, what it has the sizes of, and its vision tokens."""
    rows = []
    for shape in shapes:
        tokens = [f"{shape.image['tokens']} a picture"] if shape.image else []
        if shape.frame:
            unit = "two frames" if "grid" in shape.frame else "a frame"
            tokens.append(f"{shape.frame['tokens']} {unit}")
        rows.append((shape.name, shape.of, ", ".join(tokens)))
    return Table("", ("Shape", Column("Sizes of", wrap=True), "Vision tokens"), rows)
