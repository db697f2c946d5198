"""All other vLLM models with images: rows are reduced after the tower, by methods that only read rows.

`FoveateX` is vLLM's X. It uses only what every multimodal model of vLLM has: prompt updates (how many places an image
gets, and which of them take rows) and `embed_multimodal` (the rows of each image).

A prompt may have tokens between an image's rows, such as row breaks or tile names. Which rows stay is unknown when the
prompt is built, so all places from the first row to the last become rows. The embeddings of these tokens are inserted
among the rows that stay.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import MultiModalDataItems

from foveate.hosts import Kept, Reducer
from foveate_vllm import guards
from foveate_vllm.decoder import BetweenLayers, warn_of_untested
from foveate_vllm.encoding import Asked, by_rate, ready
from foveate_vllm.host import ModelRegistry, supports_mrope
from foveate_vllm.processing import DroppingInfo, DroppingProcessor, Sized, span_of
from foveate_vllm.setting import Setting
from foveate_vllm.towers import RENAMED

INNER = "foveate_inner"
"""Key of the span from an image's first row to its last in the whole prompt, (places,) int64: −1 for a row, or id."""
TESTED = (
    "Idefics3ForConditionalGeneration", "InternVLForConditionalGeneration", "LlavaOnevisionForConditionalGeneration",
    "Mistral3ForConditionalGeneration", "SmolVLMForConditionalGeneration",
)  # fmt: skip
"""Architectures whose answers tests compare with those of transformers."""


class GenericInfo(DroppingInfo):
    """Base class placed before a processing info of vLLM."""

    host = guards.ROWS

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the model's own limits. Refuse a model without images."""
        limits: Mapping[str, int | None] = super().get_supported_mm_limits()
        guards.refuse_no_images(limits)
        return limits


class GenericProcessor(DroppingProcessor):
    """Base class placed before a multimodal processor of vLLM."""

    def sizes(self, mm_items: MultiModalDataItems, outputs: BatchFeature, kwargs: Mapping[str, Any]) -> Sequence[Sized]:
        """Count the rows in the prompt updates that the model's own processor would make."""
        stock: Any = super(DroppingProcessor, self)
        items = MultiModalKwargsItems.from_hf_inputs(outputs, stock._get_mm_fields_config(outputs, kwargs))
        updates = stock._get_prompt_updates(mm_items, kwargs, items)
        (update,) = [one for one in updates if one.modality == "image"]
        inner = [span_of(update._resolve_content(index))[1] for index in range(len(mm_items["image"]))]
        outputs[INNER] = inner
        counts = [int((own < 0).sum()) for own in inner]
        pictures = self.info.setting.family.pictures(self.info.get_hf_config(), "image", outputs, counts)
        return [(count, picture.grids or ()) for count, picture in zip(counts, pictures, strict=True)]

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, INNER: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


class GenericModel(BetweenLayers):
    """Base class placed before a model of vLLM."""

    host = guards.ROWS
    config: Any
    hf_to_vllm_mapper: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.config = config = vllm_config.model_config.hf_config
        self.foveate = self.setting_of(config)
        guards.refuse_tower_lora(vllm_config.lora_config)
        if getattr(config.vision_config, "model_type", None) in ("clip_vision_model", "siglip_vision_model"):
            self.hf_to_vllm_mapper = type(self).hf_to_vllm_mapper | RENAMED
        self.drop_between(self.foveate)
        warn_of_untested(type(self).__name__, TESTED)
        self.log_start(vllm_config)

    @classmethod
    def setting_of(cls, config: Any) -> Setting:
        guards.refuse_mrope(cls.__name__, supports_mrope(cls))
        return super().setting_of(config)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the rows of each image that have places in the prompt."""
        asked, inner = Asked(kwargs), kwargs.pop(INNER, None)
        if not asked:
            return ready(kwargs) or super().embed_multimodal(**kwargs)  # type: ignore[misc]
        images = [image.flatten(0, -2) for image in super().embed_multimodal(**kwargs)]  # type: ignore[misc]
        sizes = [len(image) for image in images]
        pictures = self.foveate.family.pictures(self.config, "image", kwargs, sizes)

        def of_rate(stages: Reducer, chosen: Sequence[int]) -> list[Kept]:
            return stages.reduce([images[index] for index in chosen], [pictures[index] for index in chosen])

        entered = by_rate(self.foveate, asked, of_rate)
        return [self._with_tokens(one, own) for one, own in zip(entered, inner, strict=True)]

    def _with_tokens(self, entered: Kept, inner: Tensor) -> Tensor:
        """Insert the embeddings of tokens between an image's rows, if the prompt has no places for these any more."""
        inner = inner.to(entered.rows.device)
        texts = (inner >= 0).nonzero()[:, 0]
        places = (inner < 0).nonzero()[:, 0]
        rows: Tensor = entered.rows
        if not len(texts) or len(entered) == len(places):
            return rows
        words = self.get_language_model().embed_input_ids(inner[texts])  # type: ignore[attr-defined]
        # Of places row, text, row, row with the first and last row kept: places 0 3 and texts 1 give order 0 2 1.
        order = torch.cat((places[entered.source], texts)).argsort()
        return torch.cat((rows, words.to(rows)))[order]

    def get_encoder_cudagraph_config(self) -> Any:
        """Exclude images: what is captured bypasses `embed_multimodal`."""
        return guards.without_images(super().get_encoder_cudagraph_config())  # type: ignore[misc]


def _in_front(first: type, factory: Any) -> Any:
    """Wrap a factory so that `first` precedes its class in the bases. Some factories are functions that pick one."""

    def make(*args: Any, **named: Any) -> Any:
        kind = factory if isinstance(factory, type) else type(factory(*args, **named))
        return type(f"Foveate{kind.__name__}", (first, kind), {})(*args, **named)

    return make


def __getattr__(name: str) -> Any:
    """Build the class of an architecture when vLLM's registry asks for it by name."""
    stock_name = name.removeprefix("Foveate")
    if stock_name == name or stock_name not in ModelRegistry.models:
        raise AttributeError(name)
    stock = ModelRegistry.models[stock_name].load_model_cls()
    own = stock._processor_factory
    register = MULTIMODAL_REGISTRY.register_processor(
        _in_front(GenericProcessor, own.processor),
        info=_in_front(GenericInfo, own.info),
        dummy_inputs=own.dummy_inputs,
    )
    own_class = register(type(name, (GenericModel, stock), {"__module__": __name__}))
    globals()[name] = own_class
    return own_class
