"""What is benched: a model and its prompt, of a named shape or of a checkpoint."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.bench.shapes import Shape
from foveate.bench.workload import TEXT, PromptSize, Workload, synthetic
from foveate.errors import SettingError

__all__ = ["Subject", "config_of_shape", "dtype_for", "from_checkpoint", "from_shape"]

SIDE = 672  # pixels of the noise picture that a checkpoint is shown
MOST = 64  # pictures that a checkpoint is shown: its processor makes pixels of all of them


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model and its prompt.

    Attributes:
        name: Of the shape, or what the user called the checkpoint.
        shape: Whose sizes it has, with random weights; None of a checkpoint.
        model: The model, or its config alone for arithmetic.
        workload: The prompt.
    """

    name: str
    shape: Shape | None
    model: Any
    workload: Workload


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The number format of a shape's weights; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16


def config_of_shape(shape: Shape, dtype: torch.dtype, size: PromptSize) -> Subject:
    """A shape without weights, for arithmetic alone.

    Raises:
        SettingError: If the shape takes no such prompt.
    """
    config = shape.make_config()
    config.dtype = dtype
    return Subject(shape.name, shape, config, synthetic(shape, size))


def from_shape(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str, size: PromptSize) -> Subject:
    """A shape with random weights, and noise for its pictures.

    Raises:
        SettingError: If the shape takes no such prompt.
    """
    synthetic(shape, size)  # refuse what cannot be before weights are made
    model = shape.build(device, dtype, attention, size.seed)
    return Subject(shape.name, shape, model, synthetic(shape, size, device, dtype))


def from_checkpoint(vlm: VLM, size: PromptSize) -> Subject:
    """A checkpoint, and a prompt as its own processor makes it: pictures of noise, and words.

    The prompt has as many tokens of text as asked for, or a few less where words take several. From here on
    the model's answers end where they are told to, not at its end of sequence.

    Raises:
        SettingError: If frames are asked for, more than 64 pictures, or less text than the chat template alone takes.
    """
    if size.images is not None and size.images > MOST:
        raise SettingError(
            f"A checkpoint is shown at most {MOST} pictures of noise; got {size.images}. Take fewer, or predict a "
            "named shape: that needs no pictures."
        )
    if size.frames is not None:
        raise SettingError("A video's frames go with a named shape; a checkpoint is shown pictures of noise: images.")
    vlm.model.generation_config.eos_token_id = None
    rng = np.random.default_rng(size.seed)
    pictures = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(size.images or 1)]
    prompt = vlm.prepare(pictures, _words(1))
    least = prompt.text_tokens
    asked = size.text_tokens or max(least, TEXT)
    if asked < least:
        raise SettingError(f"A prompt of {asked} tokens of text: this model's template alone takes {least}.")
    if asked > least:
        a_word = vlm.prepare(pictures, _words(2)).text_tokens - least  # a small vocabulary spells it
        prompt = vlm.prepare(pictures, _words(1 + (asked - least) // a_word))
    return Subject(vlm.name, None, vlm.model, _batch(prompt, size.batch))


def _words(count: int) -> str:
    return " ".join(["word"] * count)


def _batch(prompt: Prompt, batch: int) -> Workload:
    """One prompt as often as the batch has samples."""
    tower = prompt.tower_images
    single = Workload(
        inputs=prompt.inputs,
        batch=1,
        text_tokens=prompt.text_tokens,
        sizes=prompt.sizes,
        tower_images=None if tower is None else tuple(tower),
        grids=prompt.grids,
        videos=prompt.videos,
    )
    return single.repeated(batch)
