"""LLaVA-NeXT (1.6): a base view, then tiles put together and unpadded, with a newline after every row."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from foveate.families._anyres import AnyResolution

__all__ = ["FAMILY", "LlavaNext"]


class LlavaNext(AnyResolution):
    """Where things are inside `LlavaNextForConditionalGeneration`, with a Vicuna, Mistral or other decoder."""

    model_type: ClassVar[str] = "llava_next"

    def packed(self, modality: str, views: Sequence[Tensor], given: Mapping[str, Any]) -> list[Tensor]:
        strategy = self.model.config.vision_feature_select_strategy
        return list(self.core.pack_image_features(views, given["image_sizes"], strategy, image_newline=None)[0])


FAMILY = LlavaNext
