"""LLaVA-NeXT (1.6) in vLLM, with tiles and newlines. Tokens are dropped behind the projector, as on transformers."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.parse import MultiModalDataItems

from foveate.core.grid import Grid
from foveate.core.signals import TowerSignal
from foveate.core.tensors import Memo
from foveate.families.llava_next import LlavaNext
from foveate.hosts import Reducer
from foveate_vllm.encoding import Asked, by_rate, groups, ready
from foveate_vllm.processing import DroppingInfo, DroppingProcessor, Sized
from foveate_vllm.towers import RENAMED, DroppingLlava, TowerReader

__all__ = ["FoveateLlavaNextForConditionalGeneration"]

Size = tuple[int, int]
"""Height and width of an image, in pixels."""
REMEMBERED = 64  # image sizes whose packing is cached


class LlavaNextInfo(DroppingInfo, LlavaNextProcessingInfo):
    """Counts of tokens that LLaVA-NeXT's images have, and of those that stay."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> dict[str, int]:
        """Return all tokens of the largest image, because a request may ask for more than the server's rate."""
        return {"image": self.get_max_image_tokens()}


class LlavaNextProcessor(DroppingProcessor, LlavaNextMultiModalProcessor):
    """Builds prompts with places for the tokens that stay of each image."""

    def sizes(self, mm_items: MultiModalDataItems, outputs: BatchFeature, kwargs: Mapping[str, Any]) -> Sequence[Sized]:
        return [self._size(height, width) for height, width in outputs["image_sizes"].tolist()]

    def _size(self, height: int, width: int) -> tuple[int, tuple[Grid, ...]]:
        """Return the tokens of an image, and the grids of its views without newlines."""
        count = self.info.get_num_image_tokens(image_width=width, image_height=height)
        return count, LlavaNext.image(self.info.get_hf_config(), count, (height, width)).grids or ()


@MULTIMODAL_REGISTRY.register_processor(LlavaNextProcessor, info=LlavaNextInfo, dummy_inputs=LlavaDummyInputsBuilder)
class FoveateLlavaNextForConditionalGeneration(DroppingLlava, LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT, with the packed tokens of an image reduced. The newline that ends a single view stays."""

    hf_to_vllm_mapper = LlavaNextForConditionalGeneration.hf_to_vllm_mapper | RENAMED

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.start_dropping(vllm_config, prefix)
        self._orders = Memo(REMEMBERED)
        self._given: tuple[Tensor, ...] = ()  # the projector's latest input: (views, patches, width of the tower)
        self.multi_modal_projector.register_forward_pre_hook(lambda _, given: setattr(self, "_given", given))

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the rows of each image that have places in the prompt."""
        asked = Asked(kwargs)
        if not asked:
            return ready(kwargs) or super().embed_multimodal(**kwargs)
        inputs = self._parse_and_validate_image_input(**kwargs)
        pixels = inputs["pixel_values"]
        sizes: list[Size] = [(height, width) for height, width in inputs["image_sizes"].tolist()]
        images: list[Tensor] = []
        readers: list[list[TowerReader]] = []
        features: list[Tensor] = []
        for group in groups([len(views) * self._side**2 for views in pixels], self._most):
            part = {"pixel_values": pixels[group], "image_sizes": inputs["image_sizes"][group]}
            images.extend(super().embed_multimodal(**part))
            counts = [len(views) for views in pixels[group]]
            taken = iter(self._taps.readers(sum(counts)))
            readers.extend([next(taken) for _ in range(count)] for count in counts)
            features.extend(torch.split(self._given[0].flatten(0, -3), counts))
        packed = _Packed(self, images, sizes, readers, features)
        return by_rate(self.foveate, asked, packed.entering)

    def order(self, size: Size, views: int) -> Tensor:
        """Return the patch of each token of an image, counted through its views: (tokens,), −1 for a newline."""
        return self._orders.once(functools.partial(self._order, size, views), size)

    def _order(self, size: Size, views: int) -> Tensor:
        patches = views * self._side**2
        # Run vLLM's own packing on patch numbers, twice with different numbers. Newlines are the same in both.
        first = self._packed(torch.arange(patches), size, views)
        second = self._packed(torch.arange(1, patches + 1), size, views)
        return torch.where(first == second, -1, first)

    def _packed(self, numbers: Tensor, size: Size, views: int) -> Tensor:
        """Pack patch numbers into the order of an image's tokens: (patches,) -> (tokens,)."""
        width = len(self.image_newline)
        patches = numbers.double().view(views, -1, 1).expand(-1, -1, width)
        newline = self.image_newline
        packed: Tensor = self._merge_image_patch_embeddings(
            torch.tensor(size), patches.to(newline.device), strategy="spatial_unpad"
        )
        return packed[:, 0].long()


class _Packed:
    """The images of a step behind the projector, with newlines among their tokens."""

    def __init__(
        self,
        model: FoveateLlavaNextForConditionalGeneration,
        images: Sequence[Tensor],
        sizes: Sequence[Size],
        readers: Sequence[Sequence[TowerReader]],
        features: Sequence[Tensor],
    ) -> None:
        self._model = model
        self._features = features
        self._images = images
        self._sizes = sizes
        self._readers = readers

    def entering(self, stages: Reducer, indices: Sequence[int]) -> list[Tensor]:
        """Return the rows of some images that enter the decoder."""
        images = [self._images[index] for index in indices]
        config = self._model.config
        pictures = [LlavaNext.image(config, len(self._images[index]), self._sizes[index]) for index in indices]

        @functools.cache
        def stats(signal: TowerSignal) -> list[Tensor]:
            return [self._read(index, signal) for index in indices]

        extras = lambda at: {"made": lambda: self._made(indices[at])}  # noqa: E731
        entered = stages.reduce(images, pictures, stats=stats, more=extras)
        return [image.rows for image in entered]

    def _read(self, index: int, signal: TowerSignal) -> Tensor:
        """Return a signal of an image's tokens, without newlines: (tokens, numbers)."""
        return self._packed(index, torch.cat([reader.read(signal) for reader in self._readers[index]]))

    def _made(self, index: int) -> Tensor:
        """Return the tower's features of an image's tokens, without newlines: (tokens, width)."""
        return self._packed(index, self._features[index].flatten(0, 1))

    def _packed(self, index: int, patches: Tensor) -> Tensor:
        """Bring values of an image's patches, (patches, any), into the order of its tokens."""
        order = self._model.order(self._sizes[index], len(self._readers[index])).to(patches.device)
        return patches[order[order >= 0]]
