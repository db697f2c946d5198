"""The workload of a benchmark: a batch of prompts, each with images or a video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.bench.shapes import NamedShape
from foveate.contract.method import Method
from foveate.core.fields import check
from foveate.core.grid import Grid
from foveate.cost import Cost, RunCounts, cost
from foveate.errors import SettingError
from foveate.plain.flags import PromptRequest

LEAD = 4  # tokens of text before the first image
TEXT = 40
"""Default number of text tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A batch of prompts of equal length.

    Attributes:
        inputs: The model's inputs. Empty if only arithmetic is needed.
        batch: Number of samples.
        text_tokens: Tokens of one sample that are not vision tokens.
        sizes: Vision tokens of each image or video of one sample.
        tower_images, grids, videos: See `foveate.cost`.
    """

    inputs: Mapping[str, object]
    batch: int
    text_tokens: int
    sizes: tuple[int, ...]
    tower_images: tuple[int, ...] | None = None
    grids: Sequence[Sequence[Grid]] | None = None
    videos: Sequence[bool] | None = None

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of one sample."""
        return sum(self.sizes)

    def cost(
        self,
        model: PreTrainedModel | PreTrainedConfig,
        method: Method | None = None,
        attention: Literal["full", "causal"] = "full",
        **ran: Unpack[RunCounts],
    ) -> Cost:
        """The cost of one sample. Takes the model or its config, and the counts of a trace."""
        return cost(
            model,
            text_tokens=self.text_tokens,
            vision_tokens=self.sizes,
            method=method,
            **ran,
            tower_images=self.tower_images,
            grids=self.grids,
            videos=self.videos,
            attention=attention,
            dtype=getattr(model, "dtype", None),
        )


def synthetic(
    shape: NamedShape,
    size: PromptRequest,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """Make prompts of random text and noise for a shape, with images or one video.

    Four tokens of text come before the first image, and one between two.

    Args:
        shape: The shape.
        size: Batch size, number of images or frames, and text tokens.
        device: Device of the tensors. None makes no tensors, for arithmetic only.
        dtype: Dtype of the pixels.

    Raises:
        SettingError: If the shape does not take such an input, or there are too few text tokens.
    """
    check(size, "A prompt")
    media = _Media.of(shape, size.images, size.frames)
    text_tokens = TEXT
    if size.text_tokens is not None:
        text_tokens = size.text_tokens
    least = LEAD + 2 * media.count
    if text_tokens < least:
        raise SettingError(
            f"A prompt with {media.count} images needs {least} tokens of text or more; got {text_tokens}."
        )
    workload = media.workload(size.batch, text_tokens)
    if device is None:
        return workload
    config, generator = shape.make_config(), torch.Generator(device).manual_seed(size.seed)
    ids = _ids(config, workload, media.modality, generator)
    return replace(workload, inputs=ids | _pixels(config, workload, media, generator, dtype))


@dataclass(frozen=True, slots=True)
class _Media:
    """The images or the video of one sample.

    Attributes:
        spec: The shape's sizes of one; see `NamedShape.image`.
        modality: "image" or "video".
        count: Number of images, or 1 for a video.
        frames: Number of frames of a video, or 1 for images.
    """

    spec: Mapping[str, Any]
    modality: Literal["image", "video"]
    count: int
    frames: int

    @classmethod
    def of(cls, shape: NamedShape, images: int | None, frames: int | None) -> "_Media":
        """The images or frames asked for, or the shape's usual ones.

        Raises:
            SettingError: If both are given, the shape does not take them, or their number is wrong.
        """
        if images is not None and frames is not None:
            raise SettingError("images and frames exclude each other: give only one of them.")
        if frames is None and (images is not None or shape.image is not None):
            if shape.image is None:
                raise SettingError(f"The shape {shape.name} takes a video: give frames, not images.")
            return cls(shape.image, "image", images or 1, 1)
        if shape.frame is None:
            raise SettingError(f"The shape {shape.name} takes pictures: give images, not frames.")
        if frames is None:
            frames = int(shape.frame["frames"])
        if frames < 2 or frames % 2:
            raise SettingError(f"A video of {shape.name} needs an even number of frames, 2 or more; got {frames}.")
        return cls(shape.frame, "video", 1, frames)

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """Patches of one image or video: (time, rows, columns), with two frames per time step. None if it has none."""
        if "grid" not in self.spec:
            return None
        time, rows, columns = self.spec["grid"]
        return max(time, self.frames // 2), rows, columns

    def workload(self, batch: int, text_tokens: int) -> Workload:
        """The workload without tensors, for arithmetic."""
        frames = self.frames
        crops, grids = frames, None
        if self.grid is not None:
            frames, rows, columns = self.grid
            crops, grids = frames, [[(rows // 2, columns // 2)] * frames] * self.count
        elif len(self.spec["pixels"]) == 4:
            crops = self.spec["pixels"][0]
        elif "cells" in self.spec:
            rows, columns = self.spec["cells"]
            grids = [[(rows, columns)] * frames] * self.count
        tokens = self.spec["tokens"] * frames + self.spec.get("more", 0)
        videos = (self.modality == "video",) * self.count
        return Workload(
            {}, batch, text_tokens, (tokens,) * self.count, (crops,) * self.count, grids=grids, videos=videos
        )


def _pixels(
    config: PreTrainedConfig, workload: Workload, media: _Media, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Random pixels of all images or videos of the batch, and their sizes, as keywords of the model."""
    total, device = workload.batch * media.count, generator.device
    inputs: dict[str, Tensor] = {}
    if media.grid is not None:
        time, rows, columns = media.grid
        vision = config.vision_config
        size = [total * time * rows * columns, 3 * vision.temporal_patch_size * vision.patch_size**2]
        inputs[f"{media.modality}_grid_thw"] = torch.tensor([media.grid] * total, device=device)
    else:
        frames = []
        if media.modality == "video":
            frames = [media.frames]
        size = [total, *frames, *media.spec["pixels"]]
        if "size" in media.spec:
            inputs["image_sizes"] = torch.tensor([media.spec["size"]] * total, device=device)
    name = "pixel_values"
    if media.modality == "video":
        name = "pixel_values_videos"
    return inputs | {name: torch.randn(size, generator=generator, device=device, dtype=dtype)}


def _ids(config: PreTrainedConfig, workload: Workload, modality: str, generator: torch.Generator) -> dict[str, Tensor]:
    """Ids of random text around runs of placeholders, one run for each of `workload.sizes`.

    For two images of three tokens: w w w w s I I I s I I I w w …, where s is the token that starts an image (a word
    if the model has no such token).
    """
    placeholder = getattr(config, f"{modality}_token_id", None)
    if placeholder is None:
        placeholder = getattr(config, f"{modality}_token_index")
    start = getattr(config, "vision_start_token_id", None)
    device, batch = generator.device, workload.batch
    words = torch.randint(10, 900, (batch, workload.text_tokens), generator=generator, device=device)
    pieces = [words[:, :LEAD]]
    used = LEAD
    for size in workload.sizes:
        before = words[:, used : used + 1]
        if start is not None:
            before = torch.full_like(before, start)
        pieces += [before, torch.full((batch, size), placeholder, device=device)]
        used += 1
    ids = torch.cat((*pieces, words[:, used:]), dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if start is not None:
        types = {"image": 1, "video": 2}
        inputs["mm_token_type_ids"] = (ids == placeholder).long() * types[modality]
    return inputs
