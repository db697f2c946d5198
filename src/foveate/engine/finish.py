"""What is left to do once a prompt is through: earlier layers' caches are cut for decoding."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.engine.cache import pruned_layer
from foveate.engine.prefill import Prefill
from foveate.engine.rows import RowMap
from foveate.families.base import Family

__all__ = ["cut_cache"]


def cut_cache(prompt: Prefill, cache: Any, family: Family, live: Tensor | None) -> None:
    """Cut earlier layers' keys and values down to the tokens left at the end, where a stage wants that.

    Args:
        prompt: The call, through all layers.
        cache: Holds them.
        family: Knows which layers cache a state and no tokens.
        live: (samples, unpruned columns), nonzero where a column is no padding; None if all are.
    """
    asked = prompt.program.kv_layers()
    layers = [index for index in asked if index < len(cache.layers) and index not in family.recurrent]
    if not layers or prompt.layout is None:
        return
    final, left = prompt.final(), _tokens_left(prompt)
    wanted: dict[tuple[int, torch.device], tuple[Tensor, list[int]]] = {}  # layouts live meanwhile
    for index in layers:
        layout = prompt.layouts[index]
        if layout is prompt.layout:
            continue
        pruned = pruned_layer(cache, index)
        alike = id(layout), pruned.keys.device
        if alike not in wanted:
            wanted[alike] = _wanted(prompt, layout, final.to(pruned.keys.device), left, live)
        pruned.keep(*wanted[alike])
        if prompt.layout.numbered:
            rows = prompt.rows if layout is None else layout.lengths
            pruned.shift = prompt.layout.on(pruned.keys.device).shift(pruned.shift, rows)
    prompt.note_cache_cut()


def _wanted(
    prompt: Prefill, layout: RowMap | None, final: Tensor, left: Sequence[int], live: Tensor | None
) -> tuple[Tensor, list[int]]:
    """Which rows of layers with this layout are text or left at the end, and how many: see `PrunedLayer.keep`."""
    if layout is None:
        wanted = final if live is None else final & (live[:, -prompt.span :].to(final.device) != 0)
        texts = [sample.live - len(sample.vision) for sample in prompt.samples]
    else:
        layout = layout.on(final.device)
        wanted = final.take_along_dim(layout.source.clamp(min=0), dim=1) & (layout.source >= 0)
        wanted = wanted if layout.valid is None else wanted & layout.valid
        texts = [len(sample.text) for sample in prompt.samples]
    return wanted, [text + tokens for text, tokens in zip(texts, left, strict=True)]


def _tokens_left(prompt: Prefill) -> list[int]:
    """How many tokens of each sample are left. The host waits only where some rows may be no tokens of their own."""
    counts = [0] * len(prompt.samples)
    for group in prompt.groups:
        merged = prompt.program.adds_rows and group.assign is not None
        left = (group.tokens >= 0).sum(dim=1).tolist() if merged else [group.left] * len(group.members)
        for member, count in zip(group.members, left, strict=True):
            counts[member] = count
    return counts
