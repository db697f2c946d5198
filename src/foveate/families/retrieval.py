"""Retrieval models of transformers: around a vision-language model, a head that projects its last rows to vectors."""

from collections.abc import Callable
from typing import Any

import torch

from foveate._transformers import by_name
from foveate.core.patching import Patcher


def hand_pages(patches: Patcher, model: Any) -> None:
    """Let a ColQwen2's own model put pictures into the prompt, as ColQwen2 does itself, without ids.

    The inner model gets the ids and pixels. It keeps the positions it has without ids, which are not M-RoPE's: vectors
    that are indexed already have them too.
    """
    if model.config.model_type != "colqwen2":
        return
    page: dict[str, Any] = {}

    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        kwargs = by_name(model, args, kwargs, skip=0)
        pixels, grids = kwargs.get("pixel_values"), kwargs.get("image_grid_thw")
        if pixels is None or kwargs.get("inputs_embeds") is not None:
            return original(**kwargs)
        if grids is not None:  # pages are padded to the most patches of one
            pixels = pixels[torch.arange(pixels.shape[1], device=grids.device) < (grids[:, 1] * grids[:, 2])[:, None]]
        page.update(input_ids=kwargs["input_ids"], pixel_values=pixels, image_grid_thw=grids, inputs_embeds=None)
        try:
            return original(**{**kwargs, "pixel_values": None})
        finally:
            page.clear()

    def before(vlm: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if not page:
            return None
        embeds, positions = kwargs["inputs_embeds"], kwargs.get("position_ids")
        if positions is None:
            positions = vlm.compute_3d_position_ids(None, embeds, attention_mask=kwargs.get("attention_mask"))
        if positions is None:
            positions = torch.arange(embeds.shape[1], device=embeds.device).expand(3, embeds.shape[0], -1)
        return args, {**kwargs, **page, "position_ids": positions}

    patches.wrap(model, "forward", around)
    patches.hook(model.vlm, "before", before, with_kwargs=True, prepend=True)
