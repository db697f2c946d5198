"""What the engine asks of a model family. A family knows where things are; it knows no method."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from foveate.errors import UnsupportedError

__all__ = ["Family", "grid_boxes"]


class Family:
    """Where things are inside a vision-language model of transformers.

    The defaults fit a model whose core module has a `language_model` with `layers`, a
    `get_placeholder_mask` and `get_image_features` / `get_video_features`; a family overrides what differs.

    Attributes:
        model_type: The `config.model_type` this family serves.
        fit: How the usual processor brings a picture to the model: "whole" (resized), or "crop" (the
            centre square is cut out).
        core: The module that merges vision features into the text.
        decoders: The `text_config.model_type`s whose layers `fv.cost` can count: query, key, value and
            output projections, attention, and a gated MLP, all dense.
    """

    model_type: ClassVar[str]
    decoders: ClassVar[frozenset[str]] = frozenset({"llama", "mistral", "qwen2", "qwen3"})
    fit: ClassVar[Literal["whole", "crop"]] = "whole"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.core: Any = self.find_core()

    def find_core(self) -> nn.Module:
        """The innermost module that has both a `language_model` and a `get_placeholder_mask`.

        Raises:
            UnsupportedError: If there is none.
        """
        found = [
            module
            for module in self.model.modules()
            if isinstance(getattr(module, "language_model", None), nn.Module)
            and hasattr(module, "get_placeholder_mask")
        ]
        if not found:
            raise UnsupportedError(
                f"{type(self.model).__name__} has no module with a language_model and a get_placeholder_mask; "
                "pass the whole vision-language model, not a part of it."
            )
        return found[-1]

    @property
    def text(self) -> Any:
        """The decoder: takes `inputs_embeds`, runs `layers`."""
        return self.core.language_model

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers in order; each takes hidden states and one `position_embeddings` pair (cos, sin)."""
        layers: nn.ModuleList = self.text.layers
        return layers

    def vision_masks(self, placeholders: Any, given: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
        """What `get_placeholder_mask` answered, as (modality, mask) pairs; masks are (samples, tokens, …) bool.

        Args:
            placeholders: Its return value: one mask, or one for images and one for videos.
            given: The keyword arguments it was called with; a modality without features is left out.
        """
        masks = placeholders if isinstance(placeholders, tuple) else (placeholders,)
        return [
            (modality, mask)
            for modality, mask in zip(("image", "video"), masks, strict=False)
            if given.get(f"{modality}_features") is not None
        ]

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        """Where each vision token looks, for every image (or video) of a `get_*_features` call.

        Args:
            modality: "image" or "video".
            given: The call's arguments by name.
            lengths: Vision tokens of each image.

        Returns:
            For each image (tokens, 4) float32: x0, y0, x1, y1 in [0, 1] of the picture as the processor cut
            it, NaN for a token without a place; None where the family cannot tell.
        """
        return [None] * len(lengths)

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        """What `foveate.cost` asks for under this name, read off a processor's output.

        Args:
            config: The model's config.
            modality: "image" or "video".
            given: What goes into the model, by name.

        Returns:
            Pictures the tower encodes for each image (or video); None where the token counts say it.
        """
        return None

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        """FLOPs of the vision tower and of the projector for one sample; a multiply-add counts two.

        Args:
            config: The model's config; no weights are needed.
            sizes: Vision tokens of each image or video.
            pictures: How many pictures the tower encodes for each of them (see `foveate.cost`); None to
                tell from the sizes.

        Raises:
            SettingError: If the pictures cannot be told from the sizes, or contradict them.
            UnsupportedError: If the family does not know its tower's cost.
        """
        raise UnsupportedError(f"{cls.__name__} does not say what its tower costs; it needs a tower_cost method.")


def grid_boxes(height: int, width: int) -> Tensor:
    """The cells of a grid in raster order: (height · width, 4) float32, x0, y0, x1, y1 in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    cells = torch.stack((x / width, y / height, (x + 1) / width, (y + 1) / height), dim=-1)
    return cells.reshape(-1, 4).float()
