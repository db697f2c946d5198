"""Before encoding: counts the rows that will be left of each image, and builds a prompt with places for them."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems, VideoProcessorItems
from vllm.multimodal.processing import PromptUpdate, PromptUpdateDetails

from foveate.core.grid import Grid
from foveate.hosts import Host
from foveate_vllm import guards, host, metrics
from foveate_vllm.setting import FILM_KEY, RATE_KEYS, Rate, Setting

__all__ = ["KEEP", "RATE", "DroppingInfo", "DroppingProcessor", "Sized", "refuse_rates_of_texts", "span_of"]

Sized = tuple[int, tuple[Grid, ...]]
"""Vision tokens of an image, and its grids."""
KEEP = {"image": "foveate_keep", "video": "foveate_video_keep"}
"""Keys of the rows of each image or video that enter the decoder, (images,) int64, set by the processor."""
RATE = {"image": "foveate_rate", "video": "foveate_video_rate"}
"""Keys of the rate that the request asked for, (images, 2) float64: see `Rate.as_tensor`."""


class DroppingInfo:
    """Base class placed before a processing info of vLLM."""

    host: ClassVar[Host] = guards.TOWER
    """What vLLM shows of the model."""
    media: ClassVar[Sequence[str]] = ("image",)
    """Media whose tokens can be dropped."""
    alone: ClassVar[bool] = False
    """Whether only images are accepted, because videos use an image's placeholder tokens."""

    @cached_property
    def setting(self) -> Setting:
        """The setting that the server was started with."""
        return Setting.of(self.get_hf_config(), self.host)  # type: ignore[attr-defined]

    def get_hf_processor(self, **kwargs: Any) -> Any:
        """Return the model's own processor, which does not know rates."""
        return super().get_hf_processor(**_without_rates(kwargs))  # type: ignore[misc]

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return the model's own limits. With stages between layers images only, also for vLLM's dummy inputs.

        Other media stay named, with a limit of 0: Qwen3-VL looks its videos up.
        """
        limits: Mapping[str, int | None] = super().get_supported_mm_limits()  # type: ignore[misc]
        if not self.alone and not self.setting.stages(Rate()).late:
            return limits
        return {kind: most if kind == "image" else 0 for kind, most in limits.items()}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        """Refuse what vLLM refuses, and videos if there are stages between layers."""
        if self.setting.stages(Rate()).late:
            guards.refuse_film_between_layers(modality)
        super().validate_num_items(modality, num_items)  # type: ignore[misc]

    def rate(self, kwargs: Mapping[str, Any]) -> Rate:
        """Return a request's rate, or that of the server's `mm_processor_kwargs`."""
        films = "video" in self.media
        rate = Rate.of(kwargs, films)
        return rate if rate.said else Rate.of(self.usual, films)

    def film_rate(self, kwargs: Mapping[str, Any]) -> Rate:
        """Return the rate of videos, which stay whole if no rate is given."""
        return Rate(retention=kwargs.get(FILM_KEY, self.usual.get(FILM_KEY, 1.0)))

    @property
    def usual(self) -> Mapping[str, Any]:
        """The server's `mm_processor_kwargs`."""
        return self.ctx.get_mm_config().mm_processor_kwargs or {}  # type: ignore[attr-defined]


class DroppingProcessor:
    """Base class placed before a multimodal processor of vLLM whose info is a `DroppingInfo`.

    A server answers its errors with status 400.
    """

    info: Any
    _dummies: bool = False

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a prompt, and refuse one that stages could not cut.

        Raises:
            SettingError: If the method's budget cannot be met for the prompt's images, or the prompt is too long.
        """
        guards.refuse_rate_without_image(inputs.hf_processor_mm_kwargs, [*inputs.mm_data_items], self.info.usual)
        processed = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        setting: Setting = self.info.setting
        late = setting.stages(Rate()).late
        places = itertools.chain.from_iterable(processed["mm_placeholders"].get(medium, ()) for medium in KEEP)
        sizes = [place.get_num_embeds() for place in places]
        if not sizes or not late:
            self._note(sum(sizes))
            return processed
        plan = guards.refuse_uncountable(late, setting.stages(Rate()).shape.depth, sizes)
        most = getattr(self.info.get_hf_config(), guards.STEP, None)
        if most is not None:
            guards.refuse_long_prompt(len(processed["prompt_token_ids"]), most)
        self._note(sum(plan) / len(plan))
        return processed

    def _note(self, kept: float) -> None:
        """Count the vision tokens that stay of a request for /metrics, except for dummy inputs."""
        if not self._dummies:
            metrics.KEPT.inc(kept)

    def get_dummy_mm_inputs(self, *args: Any, **named: Any) -> Any:
        """Return vLLM's dummy inputs, which it makes before it serves."""
        self._dummies = True
        try:
            return super().get_dummy_mm_inputs(*args, **named)  # type: ignore[misc]
        finally:
            self._dummies = False

    def _maybe_apply_prompt_updates(self, mm_items: MultiModalDataItems, mm_res: Any) -> Any:
        if not self._dummies:
            updates = itertools.chain.from_iterable(mm_res.prompt_updates.get(medium, ()) for medium in KEEP)
            metrics.SEEN.inc(sum(_whole(of_item[0].content) for of_item in updates))
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)  # type: ignore[misc]

    def sizes(self, mm_items: MultiModalDataItems, outputs: BatchFeature, kwargs: Mapping[str, Any]) -> Sequence[Sized]:
        """Return the vision tokens of each image, newlines included, and its grids.

        Args:
            mm_items: The images.
            outputs: The output of the model's own processor.
            kwargs: The request's arguments, without its rate.
        """
        raise NotImplementedError

    def film_sizes(self, outputs: BatchFeature) -> Sequence[Sized]:
        """Return the vision tokens of each video and the grids of its frames, if tokens of videos can be dropped."""
        raise NotImplementedError

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        rate = self.info.rate(hf_kwargs)
        kwargs = _without_rates(hf_kwargs)
        outputs = super()._apply_hf_processor_main(mm_items, kwargs)  # type: ignore[misc]
        # Embeddings passed by the client enter unchanged.
        if isinstance(mm_items.get("image"), ImageProcessorItems):
            self._count(outputs, "image", rate, self.sizes(mm_items, outputs, kwargs))
        if "video" in self.info.media and isinstance(mm_items.get("video"), VideoProcessorItems):
            self._count(outputs, "video", self.info.film_rate(hf_kwargs), self.film_sizes(outputs))
        return outputs

    def _count(self, outputs: BatchFeature, medium: str, rate: Rate, sizes: Sequence[Sized]) -> None:
        """Store how many rows of each image or video will be left, and the rate."""
        counts = [self.info.setting.count(rate, size, grids, medium == "video") for size, grids in sizes]
        outputs[KEEP[medium]] = torch.tensor(counts, dtype=torch.int64)
        outputs[RATE[medium]] = rate.as_tensor().expand(len(counts), 2).clone()

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        stock = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        ours = {
            keys[medium]: MultiModalFieldConfig.batched(medium, keep_on_cpu=True)
            for medium in self.info.media
            for keys in (KEEP, RATE)
        }
        return {**stock, **ours}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, Any],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        updates = super()._get_prompt_updates(  # type: ignore[misc]
            mm_items, _without_rates(hf_processor_mm_kwargs), out_mm_kwargs
        )
        return [_shorter(update, out_mm_kwargs) for update in updates]


@functools.cache
def refuse_rates_of_texts() -> None:
    """Make vLLM's renderers refuse a rate in a request without media, which no processor sees.

    This patches the renderer class, once, in a process whose server drops tokens. Other engines are not checked.
    """
    for name in ("_process_tokens", "_process_tokens_async"):
        setattr(host.BaseRenderer, name, _checking(getattr(host.BaseRenderer, name)))


def _checking(original: Any) -> Any:
    """Wrap a renderer's method so that it checks a request first."""

    @functools.wraps(original)
    def process(self: Any, prompt: Mapping[str, Any], **others: Any) -> Any:
        if not prompt.get("multi_modal_data") and hasattr(self.model_config.hf_config, "foveate"):
            usual = self.model_config.multimodal_config.mm_processor_kwargs
            guards.refuse_rate_without_image(prompt.get("mm_processor_kwargs") or {}, (), usual)
        return original(self, prompt, **others)

    return process


def _without_rates(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in (*RATE_KEYS, FILM_KEY)}


@dataclass
class Shorter(PromptUpdateDetails):
    """The prompt update of an image of which rows are dropped.

    Attributes:
        whole: Its rows before any are dropped.
    """

    whole: int = 0


def _whole(content: Any) -> int:
    """Return the rows of an image before any are dropped, from its prompt update."""
    return content.whole if isinstance(content, Shorter) else int((span_of(content)[1] < 0).sum())


def span_of(content: Any) -> tuple[slice, Tensor]:
    """Return where an image's rows begin and end in the prompt update of the model's own processor.

    Returns:
        The span, and its contents: −1 for a row, else a token id, (places,) int64.
    """
    ids = torch.tensor(content.full)
    embeds = torch.ones_like(ids, dtype=torch.bool) if content.is_embed is None else content.is_embed(content.full)
    places = embeds.nonzero()[:, 0]
    span = slice(int(places[0]), int(places[-1]) + 1)
    return span, torch.where(embeds, -1, ids)[span]


def _shorter(update: PromptUpdate, items: MultiModalKwargsItems) -> PromptUpdate:
    """Return an update for images or videos with as many places as rows will be left. Text around them stays."""
    if update.modality not in KEEP:
        return update

    def content(index: int) -> Any:
        details = update._resolve_content(index)
        keep = items[update.modality][index].get(KEEP[update.modality])
        if keep is None or keep.data is None:
            return details
        span, inner = span_of(details)
        dropped = int((inner < 0).sum()) - int(keep.data)
        if not dropped:
            return details
        # Tokens between rows become rows too, because it is not known yet which rows stay.
        left = [details.full[span.start]] * (len(inner) - dropped)
        full = [*details.full[: span.start], *left, *details.full[span.stop :]]
        return Shorter(full, details.is_embed, whole=int((inner < 0).sum()))

    (field,) = (one.name for one in fields(update) if one.name in ("replacement", "insertion"))
    return replace(update, **{field: content})
