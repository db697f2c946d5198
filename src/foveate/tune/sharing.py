"""What all settings share of a picture is computed once: the vision tower, and the layers before a first cut."""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from foveate.bench.memory import tensors_of
from foveate.core.patching import Patcher
from foveate.core.signals import Hidden
from foveate.methods.base import Method
from foveate.methods.follow import cached_layers, cut_layers, in_order
from foveate.methods.stages import Place, Shape
from foveate.registry import family_for

__all__ = ["Shared"]

LAYERS = 4
"""Layers whose outputs are kept at most: a later first cut is dear, so few settings have one."""
ROOM = 2 << 30
"""Bytes that are kept at most; what comes later is run every time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Ran:
    """One call of a layer: what went in, what came out, and what it added to its cache."""

    entered: Tensor
    output: Tensor
    keys: Tensor
    values: Tensor


class Shared:
    """What the tower and the first layers made of each picture, for all settings that leave them as they are.

    Args:
        model: Of transformers, in no context of `drop`.
    """

    def __init__(self, model: Any) -> None:
        self._family = family_for(model)
        self._features: dict[Hashable, list[tuple[Tensor, Any]]] = defaultdict(list)
        self._ran: dict[tuple[Hashable, int], list[_Ran]] = defaultdict(list)
        self._room = ROOM

    @contextmanager
    def on(self, method: Method, key: Hashable) -> Iterator[None]:
        """While a method runs on the pictures of this key, always the same. What it leaves alone is kept and looked up.

        A method that acts in the tower or before it shares neither; one that cuts caches shares no layer.
        """
        stages = in_order(method.stages(Shape(len(self._family.layers))))
        with Patcher() as patches:
            if all(stage.place >= Place.LAYER for stage in stages):
                self._share_tower(patches, key)
                self._share_layers(patches, key, stages)
            yield

    def _share_tower(self, patches: Patcher, key: Hashable) -> None:
        def features(original: Any, *args: Any, **kwargs: Any) -> Any:
            pixels = kwargs.get("pixel_values", args[0] if args else None)
            for seen, known in self._features[key]:
                if _same(seen, pixels):
                    return known
            made = original(*args, **kwargs)
            if isinstance(pixels, Tensor) and self._has_room_for((pixels, *tensors_of(made))):
                self._features[key].append((pixels, made))
            return made

        if hasattr(self._family.core, "get_image_features"):
            patches.wrap(self._family.core, "get_image_features", features)

    def _share_layers(self, patches: Patcher, key: Hashable, stages: Any) -> None:
        cuts = cut_layers(stages)
        if not cuts or cached_layers(stages):
            return
        # A stage that reads attention or keys has them from the layer before it, which must run.
        attended = any(not isinstance(signal, Hidden) for stage in stages for signal in stage.reads)
        for index in range(min(cuts[0] - attended, LAYERS)):
            patches.wrap(self._family.layers[index], "forward", partial(self._layer, self._ran[key, index], index))

    def _layer(self, known: list[_Ran], index: int, original: Any, *args: Any, **kwargs: Any) -> Any:
        """A layer's output, and its keys and values in the cache.

        What goes on from a cache depends on more than what enters: questions may be alike where pictures are not.
        """
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length(index):
            return original(*args, **kwargs)
        for ran in known:
            if _same(ran.entered, hidden):
                cache.update(ran.keys, ran.values, index)
                return ran.output.clone()
        output = original(*args, **kwargs)
        layer = cache.layers[index]
        if type(layer) is DynamicLayer and isinstance(output, Tensor):
            keys, values = (part[:, :, -hidden.shape[1] :] for part in (layer.keys, layer.values))
            if self._has_room_for((hidden, output, keys, values)):
                known.append(_Ran(hidden.clone(), output.clone(), keys.clone(), values.clone()))
        return output

    def _has_room_for(self, tensors: Iterable[Tensor]) -> bool:
        """Whether so much more may be kept; if so, it is counted."""
        size = sum(tensor.nbytes for tensor in tensors)
        if size > self._room:
            return False
        self._room -= size
        return True


def _same(one: Tensor, other: Any) -> bool:
    return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
