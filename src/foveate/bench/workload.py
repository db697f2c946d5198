"""What a run is timed on: a batch of prompts, each with pictures or videos."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.bench.shapes import Shape
from foveate.core.grid import Grid
from foveate.cost import Cost, cost
from foveate.errors import SettingError
from foveate.methods.base import Method

__all__ = ["Workload", "synthetic"]

LEAD = 4  # tokens of text before the first picture


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """A batch of equally long prompts.

    Attributes:
        inputs: What the model gets; empty where only arithmetic is wanted.
        batch: Samples.
        text_tokens: Of one sample, all that are not vision tokens.
        sizes: Vision tokens of each image or video of one sample.
        tower_images, grids: See `foveate.cost`.
    """

    inputs: Mapping[str, Any]
    batch: int
    text_tokens: int
    sizes: tuple[int, ...]
    tower_images: tuple[int, ...] | None = None
    grids: Sequence[Sequence[Grid]] | None = None

    @property
    def vision_tokens(self) -> int:
        """Of one sample."""
        return sum(self.sizes)

    def cost(
        self,
        model: Any,
        method: Method | None = None,
        tokens: Sequence[int] | None = None,
        attention: Literal["full", "causal"] = "full",
    ) -> Cost:
        """What one sample costs; `model` or its config, `tokens` of each layer where a trace told them."""
        return cost(
            model,
            text_tokens=self.text_tokens,
            vision_tokens=self.sizes,
            method=method,
            tokens=tokens,
            tower_images=self.tower_images,
            grids=self.grids,
            attention=attention,
            dtype=getattr(model, "dtype", None),
        )


def synthetic(
    shape: Shape,
    *,
    batch: int = 1,
    text_tokens: int = 40,
    images: int | None = None,
    frames: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Workload:
    """Prompts of random text and noise for a shape: pictures, or one video.

    Args:
        shape: Which.
        batch: Samples; each has pictures of its own.
        text_tokens: Of one sample; some stand before the first picture, one between two.
        images: Pictures of one sample.
        frames: Frames of its video, instead.
        device: Where tensors go; None makes none, for arithmetic alone.
        dtype: Of the pixels.
        seed: Which noise.

    Raises:
        SettingError: If the shape has no such input, or too little text is asked for.
    """
    spec, modality, count, length = _asked(shape, images, frames)
    if text_tokens < LEAD + 2 * count:
        raise SettingError(
            f"A prompt with {count} pictures has {LEAD + 2 * count} tokens of text or more; got {text_tokens}."
        )
    grid = _grid(spec, length)
    size = spec["tokens"] * (length if grid is None else grid[0]) + spec.get("more", 0)
    sides = None if grid is None else [[(grid[1] // 2, grid[2] // 2)] * grid[0]] * count
    crops = spec["pixels"][0] if len(spec.get("pixels", ())) == 4 else length
    pictures = (crops if grid is None else grid[0],) * count
    known = Workload({}, batch, text_tokens, (size,) * count, pictures, sides)
    if device is None:
        return known
    config, rng = shape.make_config(), torch.Generator(device).manual_seed(seed)
    noise: dict[str, Any] = {"generator": rng, "device": device, "dtype": dtype}
    inputs = _ids(config, known, modality, noise)
    suffix = "_videos" if modality == "video" else ""
    if grid is not None:
        vision = config.vision_config
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        patches = grid[0] * grid[1] * grid[2]
        inputs[f"pixel_values{suffix}"] = torch.randn(batch * count * patches, width, **noise)
        inputs[f"{modality}_grid_thw"] = torch.tensor([grid] * (batch * count), device=device)
    else:
        shape_of_one = ([length] if modality == "video" else []) + spec["pixels"]
        inputs[f"pixel_values{suffix}"] = torch.randn(batch * count, *shape_of_one, **noise)
        if "size" in spec:
            inputs["image_sizes"] = torch.tensor([spec["size"]] * (batch * count), device=device)
    return Workload(inputs, batch, text_tokens, known.sizes, known.tower_images, known.grids)


def _asked(shape: Shape, images: int | None, frames: int | None) -> tuple[dict[str, Any], str, int, int]:
    """What of a shape is asked for: its spec, image or video, how many, frames of each."""
    if images is not None and frames is not None:
        raise SettingError("Give pictures or the frames of a video: images and frames exclude each other.")
    if frames is not None or (images is None and shape.image is None):
        if shape.frame is None:
            raise SettingError(f"The shape {shape.name} takes pictures: give images, not frames.")
        frames = shape.frame["frames"] if frames is None else frames
        if frames < 2 or frames % 2:
            raise SettingError(f"A video of {shape.name} has two frames or more, an even number; got {frames}.")
        return shape.frame, "video", 1, frames
    if shape.image is None:
        raise SettingError(f"The shape {shape.name} takes a video: give frames, not images.")
    if images is not None and images < 1:
        raise SettingError(f"A prompt has one picture or more; got {images}.")
    return shape.image, "image", images or 1, 1


def _grid(spec: Mapping[str, Any], frames: int) -> tuple[int, int, int] | None:
    """Patches of one picture or video, (time, rows, columns); two frames are one step of time."""
    if "grid" not in spec:
        return None
    time, rows, columns = spec["grid"]
    return (max(time, frames // 2), rows, columns)


def _ids(config: Any, of: Workload, modality: str, noise: Mapping[str, Any]) -> dict[str, Tensor]:
    """Ids of random text around runs of placeholders, one for each of `of.sizes`."""
    placeholder = next(
        found
        for name in (f"{modality}_token_id", f"{modality}_token_index")
        if (found := getattr(config, name, None)) is not None
    )
    device, rng = noise["device"], noise["generator"]
    start = getattr(config, "vision_start_token_id", None)
    ids = torch.randint(10, 900, (of.batch, of.text_tokens), generator=rng, device=device)
    pieces = [ids[:, :LEAD]]
    at = LEAD
    for size in of.sizes:
        before = ids[:, at : at + 1] if start is None else torch.full_like(ids[:, :1], start)
        pieces += [before, torch.full((of.batch, size), placeholder, device=device)]
        at += 1
    row = torch.cat((*pieces, ids[:, at:]), dim=1)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    if start is not None:
        inputs["mm_token_type_ids"] = (row == placeholder).long() * (2 if modality == "video" else 1)
    return inputs
