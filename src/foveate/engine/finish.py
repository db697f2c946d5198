"""Finish: behind the last layer, caches of earlier layers are cut for decoding, and the record is closed."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionLayer

from foveate.engine import guards
from foveate.engine.cache import PrunedLayer, length_of, pruned_layer
from foveate.engine.cutting import record
from foveate.engine.forward import Forward, RowMap
from foveate.engine.program import Program
from foveate.engine.trace import CacheRecord
from foveate.families.base import Family

__all__ = ["Ending", "finish"]


@dataclass(frozen=True, slots=True, eq=False)
class Ending:
    """That a forward ended in the middle of an image, or right behind it.

    Attributes:
        cache: On which cache.
        length: How long that was then.
        dropped: Whether tokens had been dropped.
    """

    cache: "weakref.ref[Any]"
    length: int
    dropped: bool

    def goes_on_in(self, cache: Any) -> bool:
        """Whether a forward on this cache comes right behind."""
        # A cache that was collected, and no cache, are both None.
        return cache is not None and self.cache() is cache and self.length == length_of(cache)


def finish(forward: Forward, program: Program, family: Family, cache: Any) -> Ending | None:
    """Cut the caches of earlier layers where a stage wants that, and close the record.

    Args:
        forward: Through all layers.
        program: Says which caches are cut.
        family: Knows which layers cache a state and no tokens.
        cache: Holds what the layers stored; None if the model runs without one.

    Returns:
        How the forward ended, if in an image.
    """
    if forward.record is None:
        return None
    forward.record.cache = None if cache is None else CacheRecord(_held(cache))
    if not forward.drops:
        return None
    guards.refuse_lost_layers(forward.row_maps)
    if cache is None:
        return None
    _cut_cache(forward, program, family, cache)
    forward.record.cache = _cache_record(forward, cache)
    if not forward.ends_in_vision:
        return None
    return Ending(weakref.ref(cache), length_of(cache), forward.dropped)


def _held(cache: Any) -> dict[int, int]:
    """The most tokens that layers hold which hold fewer than the prompt has, though nothing was dropped."""
    held = {}
    for index, layer in enumerate(getattr(cache, "layers", ())):
        if isinstance(layer, DynamicSlidingWindowLayer):
            held[index] = layer.sliding_window - 1
        elif isinstance(layer, LinearAttentionLayer):
            held[index] = 0
    return held


def _cache_record(forward: Forward, cache: Any) -> CacheRecord:
    """What the layers hold where tokens were dropped; slots are counted when that is asked for."""
    dead = tuple(sample.rows - sample.live for sample in forward.samples)
    slots = {index: layer.valid_slots() for index, layer in enumerate(cache.layers) if type(layer) is PrunedLayer}
    return CacheRecord(_held(cache), slots, dead)


def _cut_cache(forward: Forward, program: Program, family: Family, cache: Any) -> None:
    """Cut earlier layers' keys and values down to the tokens left at the end, where a stage wants that."""
    layers = [index for index in program.cached if index < len(cache.layers) and index not in family.recurrent]
    if not layers or forward.rows is None:
        return
    final, left = forward.final(), _tokens_left(forward, program)
    # Row maps live meanwhile, so their ids stay theirs.
    wanted: dict[tuple[int, torch.device], tuple[Tensor, list[int]]] = {}
    for index in layers:
        rows = forward.row_maps[index]
        if rows is forward.rows:
            continue
        stored = pruned_layer(cache, index)
        device = stored.keys.device
        alike = id(rows), device
        if alike not in wanted:
            wanted[alike] = _wanted(forward, rows, final.to(device), left)
        stored.keep(*wanted[alike])
        if forward.rows.numbered is not None:
            before = forward.entering_rows if rows is None else rows.lengths
            stored.shift = forward.rows.on(device).shift(stored.shift, before)
    assert forward.record is not None
    # What arrives is what the tower left, or all tokens where it was not cut.
    arriving = [stage.after for stage in forward.record.stages if stage.layer is None]
    arriving.append(tuple(sample.vision_tokens for sample in forward.samples))
    record(forward, "kv", None, arriving[0])


def _wanted(forward: Forward, rows: RowMap | None, final: Tensor, left: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Which rows of layers with this row map are text or left at the end, and how many: see `PrunedLayer.keep`."""
    if rows is None:
        wanted = final
        if forward.live is not None:
            wanted = final & (forward.live[:, -forward.span :].to(final.device) != 0)
        texts = [sample.live - len(sample.vision) for sample in forward.samples]
    else:
        rows = rows.on(final.device)
        # (samples, columns) read at the column that each row stands for: (samples, rows).
        wanted = final.take_along_dim(rows.source.clamp(min=0), dim=1) & (rows.source >= 0)
        if rows.valid is not None:
            wanted = wanted & rows.valid
        texts = [len(sample.text) for sample in forward.samples]
    return wanted, [text + tokens for text, tokens in zip(texts, left, strict=True)]


def _tokens_left(forward: Forward, program: Program) -> list[int]:
    """How many tokens of each sample are left. The host waits only where some rows may be no tokens of their own."""
    counts = [0] * len(forward.samples)
    for bucket in forward.buckets:
        left = [bucket.left] * len(bucket.members)
        if program.adds_rows and bucket.parent is not None:
            left = (bucket.source >= 0).sum(dim=1).tolist()
        for member, count in zip(bucket.members, left, strict=True):
            counts[member] = count
    return counts
