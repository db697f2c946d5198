"""Decode: a cache layer whose samples continue from one beginning, which is stored once."""

from typing import Any, Self

import torch
from torch import Tensor

from foveate.core.tensors import Change, Memo, on_tensors
from foveate.engine.lives.bare import RESUMES, PrunedLayer
from foveate.errors import UnsupportedError


class SharedLayer(PrunedLayer):
    """What each sample has added to a common beginning. It takes the place of a layer without a window.

    A change that gathers slots gives the place back to a layer in which each sample has all its rows.

    Args:
        layer: Keys and values of the beginning, of one sample. All else is of `samples` samples already.
        samples: How many samples continue.

    Attributes:
        head: Keys and values of the beginning, (1, heads, slots, head size) each. `keys` and `values` hold the rest.
    """

    def __init__(self, layer: PrunedLayer, samples: int) -> None:
        super().__init__(layer, layer.memo)
        keys, values = self.head = layer.states
        self.keys, self.values = (rows[..., :0, :].repeat_interleave(samples, dim=0) for rows in (keys, values))
        self.base, self.base_end, self.ragged = layer.base, layer.base_end, layer.ragged
        self.beside, self.notes = layer.beside, layer.notes

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (samples, heads, slots, head size) each: a copy."""
        return _behind(self.head[0], self.keys), _behind(self.head[1], self.values)

    @property
    def slots(self) -> int:
        """Number of slots, pads included."""
        return self.head[0].shape[-2] + super().slots

    def with_tensors(self, change: Change, memo: Memo) -> Self:
        """As of `PrunedLayer`, with the beginning."""
        other = super().with_tensors(change, memo)
        other.head = on_tensors(self.head, change)
        return other

    def tensors(self) -> list[Tensor]:
        """As of `PrunedLayer`, with the beginning."""
        return [*super().tensors(), *self.head]

    def crop(self, tokens_to_remove: int) -> None:
        """As of `PrunedLayer`, of what the samples have added."""
        added = self.keys.shape[-2]
        if -tokens_to_remove > added:
            raise UnsupportedError(
                f"Only the {added} tokens behind this cache's shared beginning can be removed. Remove fewer, or start "
                "with a new cache."
            )
        super().crop(tokens_to_remove)

    def reset(self) -> None:
        self._give_back()
        self.reset()

    def _store(self, keys: Tensor, values: Tensor) -> None:
        self._give_back()
        self._store(keys, values)

    def _give_back(self) -> None:
        """Give the place back. The rows are to be set."""
        self.give_place_to(PrunedLayer.of({name: value for name, value in vars(self).items() if name != "head"}))


def _resume(layer: PrunedLayer, old: dict[str, Any]) -> None:
    """Go on from the attribute `head`."""
    if old.get("head") is not None:
        layer.give_place_to(SharedLayer.of({**vars(layer), "head": old["head"]}))


RESUMES.append(_resume)


def _behind(head: Tensor, own: Tensor) -> Tensor:
    """Put what all samples share, (1, heads, slots, head size), in front of each sample's own rows."""
    return torch.cat((head.expand(own.shape[0], -1, -1, -1), own), dim=-2)
