"""Bytes of a KV cache: what it holds, and what it would hold had nothing been dropped."""

from typing import Any

__all__ = ["kv_bytes"]


def kv_bytes(cache: Any) -> tuple[int, int]:
    """Bytes of keys and values in a cache, and what they would be without dropping.

    A layer that carries a state in the place of keys and values counts nothing. A layer with a sliding window of w
    tokens holds at most w − 1 of them without dropping too: what its window saves is no merit of a method.

    Args:
        cache: Of transformers, as `generate` gave it; None for a model that keeps none.
    """
    held = undropped = 0
    for layer in getattr(cache, "layers", ()):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None:
            continue
        samples, slots = keys.shape[0], keys.shape[-2]  # (samples, heads, slots, head size)
        slot = (keys[:1, :, :1].nbytes + values[:1, :, :1].nbytes) if slots else 0  # of one sample
        size = keys.nbytes + values.nbytes
        held += size
        head = getattr(layer, "head", None)  # rows that all samples go on from, held once
        if head is None:
            undropped += samples * slot * _undropped(layer, slots)
            continue
        before = head[0].shape[-2]
        size_of_head = head[0].nbytes + head[1].nbytes
        held += size_of_head
        undropped += size + size_of_head // before * (int(layer.seen) - slots)
    return held, undropped


def _undropped(layer: Any, slots: int) -> int:
    """How many slots a layer would have had nothing been dropped."""
    seen = getattr(layer, "seen", None)  # the unpruned length, of a layer that tokens were dropped from
    if seen is None:
        return slots
    if layer.window is None:
        return int(seen)
    return min(int(seen), int(layer.window) - 1)
