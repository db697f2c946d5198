"""Decode: the layers of a cache, some of which become pruned ones. Their classes are in `lives/`."""

from typing import Any

from foveate._transformers import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    IndexedLayer,
    LinearAttentionLayer,
)
from foveate.engine.lives.bare import Coming, PrunedLayer
from foveate.engine.lives.limited import LimitedLayer
from foveate.engine.lives.shared import SharedLayer
from foveate.engine.lives.tenant import TenantLayer
from foveate.engine.lives.windowed import WindowedLayer
from foveate.errors import UnsupportedError

# Pickles of foveate 0.4.0 name two of the classes here.
__all__ = ["Coming", "PrunedLayer", "WindowedLayer", "find_pruned", "length_of", "pruned_layer", "refuse_cache"]

CACHE_LAYERS = (
    *(DynamicLayer, DynamicSlidingWindowLayer, IndexedLayer, LinearAttentionLayer, DummyLayer),
    *(PrunedLayer, WindowedLayer, LimitedLayer, SharedLayer, TenantLayer),
)
"""Kinds of cache layers that may be mixed with pruned ones."""


def refuse_cache(cache: Any) -> None:
    """Refuse a cache whose layers cannot differ in length: static, quantised, offloaded or of an unknown kind."""
    if cache is None:
        return
    kinds = set[type]()
    if isinstance(cache, Cache) and not cache.offloading and getattr(cache.update, "__func__", None) is Cache.update:
        kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    if not kinds or kinds - {*CACHE_LAYERS}:
        names = sorted(kind.__name__ for kind in {type(cache), *kinds} - {*CACHE_LAYERS})
        raise UnsupportedError(
            f"Layers of this cache ({', '.join(names)}) cannot differ in length: it is offloaded, stores rows in its "
            "own way, or has layers of another type. Use a DynamicCache without offloading: leave "
            "cache_implementation unset, or pass DynamicCache(config=model.config)."
        )


def length_of(cache: Any) -> int:
    """Return the number of unpruned tokens in a cache; −1 for static caches, to avoid a host sync."""
    length = cache.get_seq_length()
    return length if isinstance(length, int) else -1


def find_pruned(cache: Any, index: int) -> PrunedLayer | None:
    """Return the cache's pruned layer at `index`; None if none of its tokens were ever dropped."""
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    return layer if isinstance(layer, PrunedLayer) else None


def pruned_layer(cache: Any, index: int) -> PrunedLayer:
    """Return the pruned layer at `index`, replacing the cache's own layer if needed."""
    while len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, PrunedLayer):
        return layer
    memo = next((other.memo for other in cache.layers if isinstance(other, PrunedLayer)), None)
    kind = PrunedLayer if getattr(layer, "sliding_window", None) is None else WindowedLayer
    cache.layers[index] = pruned = kind(layer, memo)
    return pruned
