"""Qwen-VL and GLM-4V inside vLLM: image tokens are dropped after the tower, and the others keep their positions.

Tokens of videos can be dropped too with Qwen2.5-VL: its tower attends within frames, and rows have a time.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.config import VllmConfig
from vllm.inputs.engine import MultiModalInput
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import ProcessorInputs, TimingContext

from foveate.core.patching import Patcher
from foveate.hosts import Kept
from foveate_vllm import guards
from foveate_vllm.decoder import BetweenLayers, warn_of_untested
from foveate_vllm.encoding import Asked, entered_of, groups, reads_of
from foveate_vllm.host import ModelRegistry, gpu_sync_allowed
from foveate_vllm.positions import (
    Span,
    arrived,
    moved,
    next_position,
    restored,
    shortened,
    with_places,
)
from foveate_vllm.processing import DroppingInfo, DroppingProcessor, Sized
from foveate_vllm.qwen_tower import TowerSignals
from foveate_vllm.runners import pruning_state, pruning_switched_on
from foveate_vllm.setting import Rate, Setting

__all__ = ["MEMBERS", "DroppingQwen"]

Embeddings = Sequence[Tensor]


class DroppingQwen(BetweenLayers):
    """What these models do differently from vLLM's own. Placed before the model's class in the bases."""

    config: Any
    visual: Any
    media: ClassVar[Sequence[str]]
    """Media whose tokens are dropped."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        guards.refuse_engine_of_mrope(vllm_config)
        with pruning_switched_on(vllm_config):
            super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.is_multimodal_pruning_enabled = False  # switches off vLLM's own pruning of videos
        self.foveate = Setting.of(self.config)
        self.drop_between(self.foveate)
        stages = self.foveate.stages(Rate())
        guards.refuse_unknown_count(stages.method, stages.count(64, ((8, 8),)))
        warn_of_untested(type(self).__name__, COMPARED)
        self._most: int = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.log_start(vllm_config)

    @classmethod
    def get_model_state_cls(cls) -> type:
        """Called by runner V2."""
        return pruning_state(getattr(cls, "is_hybrid", False))

    @property
    def _width(self) -> int:
        """Width of a vision token in the decoder, without what Qwen3-VL adds in its first layers."""
        width: int = self.config.get_text_config().hidden_size
        return width

    @property
    def _patches(self) -> int:
        """Patches per token."""
        side: int = self.config.vision_config.spatial_merge_size
        return side**2

    @property
    def _sent_width(self) -> int:
        """Width of a row with these additions, without its place."""
        return self._width + getattr(self, "multiscale_dim", 0)

    # -- encode ------------------------------------------------------------------------------------------------

    def embed_multimodal(self, **kwargs: Any) -> Embeddings:
        """Return the rows of each image with their places. Videos too, if their tokens are dropped."""
        for medium in self.media:
            asked = Asked(kwargs, medium)
            inputs = getattr(self, f"_parse_and_validate_{medium}_input")(**kwargs)
            if inputs is not None:
                return self._embedded(medium, inputs, asked)
        return super().embed_multimodal(**kwargs)  # type: ignore[misc,no-any-return]

    def _embedded(self, medium: str, inputs: Mapping[str, Any], asked: Asked) -> Embeddings:
        """Return the rows of each image or video of a step."""
        grids = inputs[f"{medium}_grid_thw"].tolist()
        steps = [1.0] * len(grids)
        if (seconds := inputs.get("second_per_grid_ts")) is not None:
            steps = [each * self.config.vision_config.tokens_per_second for each in seconds.flatten().tolist()]
        if not asked:  # embeddings that came with a request
            whole = getattr(self, f"_process_{medium}_input")(inputs)
            return self._sent(whole, grids, steps, [None] * len(grids))
        signals = TowerSignals(self.visual, reads_of(self.foveate, asked))
        with Patcher() as patches:
            signals.attach(patches)
            features = self._features(medium, inputs)
        views = signals.views([image[:, : self._width] for image in features], grids)
        return self._sent(features, grids, steps, entered_of(self.foveate, asked, views, list))

    def _features(self, medium: str, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Return the tokens of each image, from few runs of the tower: (tokens, width with Qwen3-VL's additions)."""
        name = "pixel_values_videos" if medium == "video" else "pixel_values"
        grids = inputs[f"{medium}_grid_thw"]
        patches = grids.prod(-1).tolist()
        pixels = inputs[name].split(patches)
        features: list[Tensor] = []
        for group in groups([count // self._patches for count in patches], self._most):
            run = {"type": name, name: torch.cat(pixels[group]), f"{medium}_grid_thw": grids[group]}
            features.extend(getattr(self, f"_process_{medium}_input")(run))
        return features

    def _sent(
        self,
        features: Sequence[Tensor],
        grids: Sequence[Sequence[int]],
        steps: Sequence[float],
        entered: Sequence[Kept | None],
    ) -> Embeddings:
        """Return the rows of each image, as they go into the encoder cache.

        Args:
            features: Its tokens, (tokens, width with Qwen3-VL's additions).
            grids: (frames, rows, columns) of its patches.
            steps: Position difference from one of its frames to the next.
            entered: The rows left of it; None: all.
        """
        side = self.visual.spatial_merge_size
        sent = []
        for image, (_, height, width), step, left in zip(features, grids, steps, entered, strict=True):
            rows, source = image, torch.arange(len(image), device=image.device)
            if left is not None:
                source = left.source
                # A row keeps the additions of its source token; additions are not merged.
                rows = torch.cat((left.rows, image[source, self._width :]), dim=1)
            sent.append(with_places(rows, source, (height // side, width // side), step))
        return tuple(sent)

    # -- positions ---------------------------------------------------------------------------------------------

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Compute positions as if the prompt's images were whole, and remove the columns that were dropped."""
        spans = self._spans(mm_features)
        whole = restored(input_tokens, spans)
        lengths = {span.offset: span.whole for span in spans}
        features = []
        for feature in mm_features:
            place = feature.mm_position
            length = lengths.get(place.offset, place.length)
            place = replace(place, offset=moved(place.offset, spans), length=length)
            features.append(replace(feature, mm_position=place))
        positions, delta = super().get_mrope_input_positions(whole, features)  # type: ignore[misc]
        return shortened(positions, spans), delta + len(whole) - len(input_tokens)

    def _spans(self, features: Sequence[MultiModalFeatureSpec]) -> list[Span]:
        """Return the columns of a request's images."""
        spans = []
        for feature in features:
            if feature.modality in self.media:
                patches = int(feature.data[f"{feature.modality}_grid_thw"].data.prod())
                spans.append(Span(feature.mm_position.offset, feature.mm_position.length, patches // self._patches))
        return sorted(spans)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Embeddings,
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Embeddings, Tensor, int]:
        """Compute positions of the rows in this chunk of the prompt, and split the places off the rows.

        vLLM's own helper is not used: it does not support images with fewer rows than the text before them.
        """
        width = self._sent_width
        places = [rows[:, width:] for rows in multimodal_embeddings if rows.shape[1] > width]
        positions = mrope_positions
        with gpu_sync_allowed():
            if places:
                tokens = torch.as_tensor(input_ids, device=positions.device)
                channels = torch.cat(places).to(positions.device)
                marks = [getattr(self.config, f"{medium}_token_id") for medium in self.media]
                is_image = torch.isin(tokens, torch.tensor(marks, device=tokens.device))
                positions = arrived(positions, is_image, channels, num_computed_tokens)
            delta = next_position(positions) - positions.shape[1]
        return [rows[:, :width] for rows in multimodal_embeddings], positions, delta

    # -- what goes past `embed_multimodal` ---------------------------------------------------------------------

    def get_encoder_cudagraph_config(self) -> Any:
        """Exclude images: a captured tower cannot be read, and its features would not be reduced."""
        return guards.without_images(super().get_encoder_cudagraph_config())  # type: ignore[misc]


# -- what vLLM loads by name -------------------------------------------------------------------------------------


class QwenDummies:
    """What builders of dummy inputs do differently from vLLM's own."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return vLLM's dummy text, with text after the images."""
        text: str = super().get_dummy_text(mm_counts)  # type: ignore[misc]
        return f"{text}."


class QwenProcessor(DroppingProcessor):
    """What processors do differently from vLLM's own."""

    def apply(self, inputs: ProcessorInputs, timing_ctx: TimingContext) -> MultiModalInput:
        prompt: MultiModalInput = super().apply(inputs, timing_ctx)
        of_media = (prompt["mm_placeholders"].get(medium, ()) for medium in self.info.media)
        for place in itertools.chain.from_iterable(of_media):
            guards.refuse_image_at_end(place.offset + place.length, len(prompt["prompt_token_ids"]))
        return prompt

    def sizes(self, mm_items: MultiModalDataItems, outputs: BatchFeature, kwargs: Mapping[str, Any]) -> Sequence[Sized]:
        return self._sized(outputs["image_grid_thw"])

    def film_sizes(self, outputs: BatchFeature) -> Sequence[Sized]:
        return self._sized(outputs["video_grid_thw"])

    def _sized(self, patches: Tensor) -> Sequence[Sized]:
        side = self.info.get_hf_config().vision_config.spatial_merge_size
        sizes = []
        for times, height, width in patches.tolist():
            grid = (height // side, width // side)
            sizes.append((times * math.prod(grid), (grid,) * times))
        return sizes


COMPARED = (
    "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)  # fmt: skip
"""Models whose answers tests compare with those of transformers."""
FILMS = ("Qwen2_5_VLForConditionalGeneration",)
"""Models whose video tokens can be dropped: a video's tokens are one run, without timestamps between them."""
MEMBERS = (
    *COMPARED, "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration", "Glm4vForConditionalGeneration",
    "Glm4vMoeForConditionalGeneration",
)  # fmt: skip
"""vLLM's models with M-RoPE and a merger behind the tower."""


def __getattr__(name: str) -> Any:
    """Build the class of an architecture when vLLM's registry asks for it by name."""
    stock_name = name.removeprefix("Foveate")
    if stock_name == name or stock_name not in MEMBERS:
        raise AttributeError(name)
    stock = ModelRegistry.models[stock_name].load_model_cls()
    own, media = stock._processor_factory, ("image", "video") if stock_name in FILMS else ("image",)
    register = MULTIMODAL_REGISTRY.register_processor(
        type(f"{name}Processor", (QwenProcessor, own.processor), {}),
        info=type(
            f"{name}Info",
            (DroppingInfo, own.info),
            {"media": media, "alone": "Glm4v" in name},
        ),
        dummy_inputs=type(f"{name}Dummies", (QwenDummies, own.dummy_inputs), {}),
    )
    features = {"__module__": __name__, "media": media, "supports_multimodal_pruning": True}
    globals()[name] = register(type(name, (DroppingQwen, stock), features))
    return globals()[name]
