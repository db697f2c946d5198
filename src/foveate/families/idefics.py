"""SmolVLM and Idefics3: square tiles with a tag before each and a view of the whole behind, s x s patches a token, 1-D
RoPE."""

import inspect
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families.tiles import Tiled, run_lengths, runs
from foveate.families.tower import Inputs

REAL = "foveate_real_tiles"
"""Under which name it is remembered which tiles are no padding."""


class SmolVLM(Tiled):
    """Where things are inside `SmolVLMForConditionalGeneration`.

    Features come sample by sample. A tile is a run of placeholders behind a tag of text that says its row and column;
    an image ends with the run whose tag is that of the view of the whole. A frame of a video is such an image.
    """

    model_type: ClassVar[str] = "smolvlm"
    title: ClassVar[str] = "SmolVLM"
    closing_tokens: ClassVar[int] = 1  # the fence behind its last tile tells tiles from images
    videos: ClassVar[bool] = True
    decoder: ClassVar[str] = "text_model"
    projector: ClassVar[str] = "connector.modality_projection"
    mergers: ClassVar[tuple[str, ...]] = ("get_placeholder_mask", "inputs_merger")

    @classmethod
    def block(cls, config: Any) -> int:
        return int(config.scale_factor)

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """`inputs_merger` answers embeddings: tokens are where the prompt has the placeholder's id or embedding."""
        if self.merger == "get_placeholder_mask":
            return super().vision_masks(placeholders, inputs)
        ids, embeds = inputs.get("input_ids"), inputs["inputs_embeds"]
        image = self.model.config.image_token_id
        if ids is not None:
            return [("image", ids == image)]
        table = self.core.get_input_embeddings()
        placeholder = table(embeds.new_full((), image, dtype=torch.long))
        mask = (embeds == placeholder).all(dim=-1)
        return [("image", mask)]

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """Of a prompt that came as embeddings every tile is taken for an image, as its tags cannot be read."""
        if ids is None:
            return run_lengths(mask)
        ids, placed = torch.stack((ids, mask.to(ids))).cpu()  # waiting once
        samples = zip(ids.tolist(), runs(placed), strict=True)
        return [_images(row, tiles) for row, tiles in samples]

    @classmethod
    def tiles(cls, inputs: Inputs) -> Tensor:
        pixels: Tensor = inputs["pixel_values"]
        if pixels.dim() != 5:  # already (tiles, channels, rows, columns), and not by sample
            return pixels
        real = inputs[REAL] if REAL in inputs else _real(pixels)
        return pixels[real]

    def remembered(self, inputs: Inputs) -> dict[str, Any]:
        """Also which tiles are no padding: that is read later, when there are no pixels to tell it from."""
        remembered = super().remembered(inputs)
        pixels = inputs["pixel_values"]
        if pixels.dim() == 5 and REAL not in inputs:
            remembered[REAL] = _real(pixels)
        return remembered

    def form(self, features: Tensor, inputs: Inputs) -> Any:
        if "mm_encoder_outputs" not in inspect.signature(self.core.forward).parameters:  # 5.16: tile by tile
            return features
        counts = _real(inputs["pixel_values"]).sum(dim=1).tolist()
        return [sample.flatten(0, 1) for sample in torch.split(features, counts)]


class Idefics3(SmolVLM):
    """Where things are inside `Idefics3ForConditionalGeneration`: as SmolVLM, but its function that merges pictures
    into text does not say where they are."""

    model_type: ClassVar[str] = "idefics3"
    title: ClassVar[str] = "Idefics3"
    videos: ClassVar[bool] = False


def _real(pixels: Tensor) -> Tensor:
    """Which tiles are not all zeros, as those are that pad samples, (samples, tiles) bool: as the model finds them."""
    real = (pixels != 0).flatten(2).any(dim=2)
    real[0, 0] |= ~real.any()  # where all are zeros, the first one counts
    return real


def _images(ids: list[int], tiles: list[tuple[int, int]]) -> list[int]:
    """Vision tokens of each image of a sample, from its ids and where the runs of its tiles begin and end."""
    lengths = [end - start for start, end in tiles]
    if not tiles or tiles[-1][1] == len(ids):
        return lengths
    tags = _tags(ids, tiles)
    images = [0]
    for length, tag in zip(lengths, tags, strict=True):
        images[-1] += length
        if tag == tags[-1]:  # that of a view of the whole
            images.append(0)
    return images[:-1]


def _tags(ids: list[int], tiles: list[tuple[int, int]]) -> list[tuple[int, ...] | None]:
    """The text that says what each tile is: what stands between a fence and the tile; None without a fence.

    A fence stands before every tag, and behind every image:

        <fence> <row_1_col_1> tile <fence> <row_1_col_2> tile <fence> <global-img> tile <fence>
    """
    fence = ids[tiles[-1][1]]
    tags: list[tuple[int, ...] | None] = []
    for (_, before), (start, _) in itertools.pairwise([(0, 0), *tiles]):
        # Between the tile before, or the start of the prompt, and this one. The last fence there is this tile's.
        fences = [at for at in range(before, start) if ids[at] == fence]
        tag: tuple[int, ...] | None = None
        if fences:
            tag = tuple(ids[fences[-1] + 1 : start])
        tags.append(tag)
    return tags


FAMILIES = (SmolVLM, Idefics3)
