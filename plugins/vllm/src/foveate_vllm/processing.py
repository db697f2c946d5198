"""Before encoding: how many rows of each image will be left, and a prompt that has places for as many."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import PromptUpdate

from foveate.core.grid import Grid
from foveate.families.base import Family
from foveate_vllm import guards, host
from foveate_vllm.setting import RATE_KEYS, Rate, Setting

__all__ = ["KEEP", "RATE", "DroppingInfo", "DroppingProcessor", "Sized", "refuse_rates_of_texts", "span_of"]

Sized = tuple[int, tuple[Grid, ...]]
"""Vision tokens of an image, and the grids that they stand in."""
KEEP = "foveate_keep"
"""Rows of each image that enter the decoder, (images,) int64: what travels with an image from the processor on."""
RATE = "foveate_rate"
"""The rate that its request asked for, (images, 2) float64: see `Rate.as_tensor`."""


class DroppingInfo:
    """Stands before a processing info of vLLM's."""

    family: ClassVar[type[Family]]

    @cached_property
    def setting(self) -> Setting:
        """What the server was started with."""
        return Setting.of(self.get_hf_config(), self.family)  # type: ignore[attr-defined]

    def get_hf_processor(self, **kwargs: Any) -> Any:
        """The model's own, which knows no rates."""
        return super().get_hf_processor(**_without_rates(kwargs))  # type: ignore[misc]

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """The model's own; between layers images alone, so that vLLM makes no dummies of others either."""
        limits: Mapping[str, int | None] = super().get_supported_mm_limits()  # type: ignore[misc]
        if not self.setting.stages(Rate()).late:
            return limits
        return {kind: most for kind, most in limits.items() if kind == "image"}

    def validate_num_items(self, modality: str, num_items: int) -> None:
        """Refuse what vLLM does, and a film between layers with the reason."""
        if self.setting.stages(Rate()).late:
            guards.refuse_film_between_layers(modality)
        super().validate_num_items(modality, num_items)  # type: ignore[misc]

    def rate(self, kwargs: Mapping[str, Any]) -> Rate:
        """A request's, or that of the server's `mm_processor_kwargs`."""
        rate = Rate.of(kwargs)
        if rate.said:
            return rate
        usual = self.ctx.get_mm_config().mm_processor_kwargs  # type: ignore[attr-defined]
        return Rate.of(usual or {})


class DroppingProcessor:
    """Stands before a multimodal processor of vLLM's, whose info is a `DroppingInfo`.

    What it raises, a server answers with status 400.
    """

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a prompt, and refuse one that stages could not cut.

        Raises:
            SettingError: If the method's budget cannot be met for the prompt's images, or the prompt is too long.
        """
        usual = self.info.ctx.get_mm_config().mm_processor_kwargs
        guards.refuse_rate_without_image(inputs.hf_processor_mm_kwargs, [*inputs.mm_data_items], usual)
        made = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        setting: Setting = self.info.setting
        late = setting.stages(Rate()).late
        sizes = [place.get_num_embeds() for places in made["mm_placeholders"].values() for place in places]
        if not sizes or not late:
            return made
        guards.refuse_uncountable(late, setting.shape.depth, sizes)
        most = getattr(self.info.get_hf_config(), guards.STEP, None)
        if most is not None:
            guards.refuse_long_prompt(len(made["prompt_token_ids"]), most)
        return made

    def sizes(self, mm_items: MultiModalDataItems, outputs: BatchFeature, kwargs: Mapping[str, Any]) -> Sequence[Sized]:
        """Vision tokens of each image, newlines among them, and the grids that they stand in.

        Args:
            mm_items: The pictures.
            outputs: What the model's own processor made of them.
            kwargs: Of the request, without its rate.
        """
        raise NotImplementedError

    def _apply_hf_processor_main(self, mm_items: MultiModalDataItems, hf_kwargs: Mapping[str, Any]) -> BatchFeature:
        rate = self.info.rate(hf_kwargs)
        kwargs = _without_rates(hf_kwargs)
        outputs = super()._apply_hf_processor_main(mm_items, kwargs)  # type: ignore[misc]
        if not isinstance(mm_items.get("image"), ImageProcessorItems):  # embeddings come as they shall enter
            return outputs
        counts = [self.info.setting.count(rate, size, grids) for size, grids in self.sizes(mm_items, outputs, kwargs)]
        outputs[KEEP] = torch.tensor(counts, dtype=torch.int64)
        outputs[RATE] = rate.as_tensor().expand(len(counts), 2).clone()
        return outputs

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        stock = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        ours = {key: MultiModalFieldConfig.batched("image", keep_on_cpu=True) for key in (KEEP, RATE)}
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
    """Let vLLM's renderers refuse a rate in a request without media, which no processor sees.

    The class is changed, once, in a process whose server drops; an engine that does not is asked nothing.
    """
    for name in ("_process_tokens", "_process_tokens_async"):
        setattr(host.BaseRenderer, name, _checking(getattr(host.BaseRenderer, name)))


def _checking(original: Any) -> Any:
    """A renderer's method, that looks at a request first."""

    @functools.wraps(original)
    def process(self: Any, prompt: Mapping[str, Any], **others: Any) -> Any:
        if not prompt.get("multi_modal_data") and hasattr(self.model_config.hf_config, "foveate"):
            usual = self.model_config.multimodal_config.mm_processor_kwargs
            guards.refuse_rate_without_image(prompt.get("mm_processor_kwargs") or {}, (), usual)
        return original(self, prompt, **others)

    return process


def _without_rates(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kwargs.items() if key not in RATE_KEYS}


def span_of(content: Any) -> tuple[slice, Tensor]:
    """Where the rows of an image begin and end in what the model's own processor puts in the place of one.

    Returns:
        The span, and what stands there: −1 for a row, or a token's id, (places,) int64.
    """
    ids = torch.tensor(content.full)
    embeds = torch.ones_like(ids, dtype=torch.bool) if content.is_embed is None else content.is_embed(content.full)
    places = embeds.nonzero()[:, 0]
    span = slice(int(places[0]), int(places[-1]) + 1)
    return span, torch.where(embeds, -1, ids)[span]


def _shorter(update: PromptUpdate, items: MultiModalKwargsItems) -> PromptUpdate:
    """An update for images that has as many places as rows will be left; text around these stays."""
    if update.modality != "image":
        return update

    def content(index: int) -> Any:
        details = update._resolve_content(index)
        keep = items["image"][index].get(KEEP)
        if keep is None or keep.data is None:
            return details
        span, inner = span_of(details)
        dropped = int((inner < 0).sum()) - int(keep.data)
        if not dropped:
            return details
        # Tokens between rows become rows too: which rows stay is not known yet.
        left = [details.full[span.start]] * (len(inner) - dropped)
        return replace(details, full=[*details.full[: span.start], *left, *details.full[span.stop :]])

    (field,) = (one.name for one in fields(update) if one.name in ("replacement", "insertion"))
    return replace(update, **{field: content})
