"""What all settings share of a picture is computed once: the vision tower, and the layers before a first cut."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
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
        self._features: dict[Any, Any] = {}
        self._ran: dict[tuple[str, int], list[_Ran]] = defaultdict(list)
        self._room = ROOM

    @contextmanager
    def on(self, method: Method, key: str) -> Iterator[None]:
        """While a method runs on the picture of this key. What it leaves alone is looked up, or run and kept.

        A method that acts in the tower or before it shares neither; one that cuts caches shares no layer.
        """
        stages = in_order(method.stages(Shape(len(self._family.layers))))
        with Patcher() as patches:
            if all(stage.place >= Place.LAYER for stage in stages):
                self._share_tower(patches, key)
                self._share_layers(patches, key, stages)
            yield

    def _share_tower(self, patches: Patcher, key: str) -> None:
        def features(original: Any, *args: Any, **kwargs: Any) -> Any:
            pixels = kwargs.get("pixel_values", args[0] if args else None)
            place = (key, getattr(pixels, "shape", None))
            if place in self._features:
                return self._features[place]
            made = original(*args, **kwargs)
            if self._has_room_for(tensors_of(made)):
                self._features[place] = made
            return made

        if hasattr(self._family.core, "get_image_features"):
            patches.wrap(self._family.core, "get_image_features", features)

    def _share_layers(self, patches: Patcher, key: str, stages: Any) -> None:
        cuts = cut_layers(stages)
        if not cuts or cached_layers(stages):
            return
        # A stage that reads attention or keys has them from the layer before it, which must run.
        attended = any(not isinstance(signal, Hidden) for stage in stages for signal in stage.reads)
        for index in range(min(cuts[0] - attended, LAYERS)):
            patches.wrap(self._family.layers[index], "forward", partial(self._layer, self._ran[key, index], index))

    def _layer(self, known: list[_Ran], index: int, original: Any, *args: Any, **kwargs: Any) -> Any:
        """A layer's output, and its keys and values in the cache."""
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        if cache is None:
            return original(*args, **kwargs)
        for ran in known:
            if ran.entered.shape == hidden.shape and torch.equal(ran.entered, hidden):
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
