"""LLaVA-1.5 in vLLM, with vision tokens dropped before the decoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import MultiModalDataItems

from foveate.core.views import TowerView
from foveate.families.llava import Llava
from foveate_vllm.encoding import Asked, groups, ready, rows_of
from foveate_vllm.processing import DroppingInfo, DroppingProcessor, Sized
from foveate_vllm.setting import Rate
from foveate_vllm.towers import RENAMED, DroppingLlava

__all__ = ["FoveateLlavaForConditionalGeneration"]


class LlavaInfo(DroppingInfo, LlavaProcessingInfo):
    """Counts of tokens that LLaVA's images have, and of those that stay."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """Return all tokens of an image, because a request may ask for more than the server's rate."""
        return {"image": self.get_max_image_tokens()}


class LlavaProcessor(DroppingProcessor, LlavaMultiModalProcessor):
    """Builds prompts with places for the tokens that stay of each image."""

    def sizes(self, mm_items: MultiModalDataItems, outputs: BatchFeature, kwargs: Mapping[str, Any]) -> Sequence[Sized]:
        size = self.info.get_max_image_tokens()  # images are cropped to one square
        (picture,) = Llava.pictures(self.info.get_hf_config(), "image", {}, (size,))
        assert picture.grids is not None
        return [(size, picture.grids)] * len(outputs["pixel_values"])


@MULTIMODAL_REGISTRY.register_processor(LlavaProcessor, info=LlavaInfo, dummy_inputs=LlavaDummyInputsBuilder)
class FoveateLlavaForConditionalGeneration(DroppingLlava, LlavaForConditionalGeneration):
    """vLLM's LLaVA, with each image's rows reduced before or behind the projector, all images of a step at once."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | RENAMED

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.start_dropping(vllm_config, prefix)
        self.foveate.count(Rate(), self._side**2, ((self._side, self._side),))  # refuse an unknown count

    @property
    def whole_image(self) -> int:
        """Tokens of every image before any are dropped."""
        return int(self._side**2)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the rows of each image that have places in the prompt."""
        asked = Asked(kwargs)
        if not asked:
            return ready(kwargs) or super().embed_multimodal(**kwargs)
        pixels: Tensor = self._parse_and_validate_image_input(**kwargs)["pixel_values"]
        views: list[TowerView] = []
        for group in groups([self._side**2] * len(pixels), self._most):
            views.extend(self._views(pixels[group]))
        return rows_of(self.foveate, asked, views, self._projected)

    def _views(self, pixels: Tensor) -> list[TowerView]:
        """Run the tower on some images, and return a view of each."""
        states = self.vision_tower(pixels, select_layers=self.select_layers, feature_select_strategy="full")
        readers = self._taps.readers(len(pixels))
        grid = (self._side, self._side)
        views = []
        for image, reader in zip(states, readers, strict=True):
            view = TowerView(
                image[int(self._cls) :],
                grid=grid,
                cls=image[:1] if self._cls else None,
                read=reader.read,
                entered=self._side**2,
                grids=(grid,),
            )
            views.append(view)
        return views

    def _projected(self, images: Sequence[Tensor]) -> Sequence[Tensor]:
        """Project the rows of all images at once."""
        rows = self.multi_modal_projector(torch.cat(list(images)))
        return torch.split(rows, [len(image) for image in images])
