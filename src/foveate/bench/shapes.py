"""Named shapes: models of real sizes with random weights. Weights do not change speed at a fixed schedule."""

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
    """The sizes of a model, and of its usual picture and video frame.

    Attributes:
        name: The name that the user types.
        of: The checkpoint that has these sizes.
        config: The config of transformers, as plain values.
        image: One picture: its number of `tokens`, and either its shape in `pixels` (crops first, if the model cuts it
            into crops, with its `size` in pixels) or the `grid` of its patches. None if the shape is for videos.
        frame: One frame of a video, in the keys of `image`. Also: `frames`, the usual number of frames; `cells`, rows
            and columns of tokens of a frame given in pixels; and `more`, extra tokens per video.
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
        """Build the model with random weights on a device, in evaluation mode."""
        model = random_model(self.make_config(), device, dtype, attention=attention, seed=seed)
        model.generation_config.eos_token_id = None  # answers have a fixed length
        model.generation_config.pad_token_id = 0
        return model


@cache
def shapes() -> dict[str, NamedShape]:
    """All shapes by name."""
    entries = json.loads(SHAPES.read_text(encoding="utf-8"))
    return {name: NamedShape(name, **values) for name, values in entries.items()}


def shape(name: str) -> NamedShape:
    """The shape with this name.

    Raises:
        UnknownNameError: If there is none. The message lists the shapes.
    """
    if name not in shapes():
        raise UnknownNameError(f"There is no shape {name!r}. Shapes: {', '.join(shapes())}.")
    return shapes()[name]


def shape_sheet(shapes: Sequence[NamedShape]) -> Table:
    """A table of the shapes: the checkpoint with these sizes, and the vision tokens of a picture or frame."""
    rows = []
    for shape in shapes:
        tokens = [f"{shape.image['tokens']} a picture"] if shape.image else []
        if shape.frame:
            unit = "two frames" if "grid" in shape.frame else "a frame"
            tokens.append(f"{shape.frame['tokens']} {unit}")
        rows.append((shape.name, shape.of, ", ".join(tokens)))
    return Table("", ("Shape", Column("Sizes of", wrap=True), "Vision tokens"), rows)
