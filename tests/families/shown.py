"""What a family shows a method that reduces in the tower, and what a layer tells one that reads its attention."""

from typing import Any

import torch
from torch import Tensor

import foveate as fv
from foveate.contract import Attention, LayerStage, TowerAttention, TowerKeys

PAID, KEYS = TowerAttention("patches"), TowerKeys()


class Shown:
    """A reducer that keeps what it is shown; `lengths` are the tokens of each image, for families that ask."""

    early, block = False, 1

    def __init__(self, lengths=(), reads=(PAID, KEYS)):
        self._lengths, self.views, self.reads = lengths, [], reads

    def lengths(self, total, pieces=()):
        assert total == sum(self._lengths)
        return self._lengths

    def reduce(self, views):
        self.views.extend(views)
        return [None] * len(self.views)


def ways(rows: Tensor) -> dict[str, Tensor]:
    """Attention rows over tokens, (rows, tokens), reduced in every way that a signal has."""
    total = rows.sum(dim=0)
    return {"mean": rows.mean(dim=0), "max": rows.amax(dim=0), "sum": total, "share": total / total.sum()}


def paid(model: Any, inputs: dict[str, Any], layer: int, rows: str, **options: Any) -> dict[str, Tensor]:
    """What a stage before `layer` gets of the attention that these rows pay there, in every way; nothing is dropped."""
    signals = {
        over: Attention(rows=rows, layer="next", over=over, **options) for over in ("mean", "max", "sum", "share")
    }
    seen: dict[str, Tensor] = {}

    def choose(view: Any, _: int | None) -> None:
        seen.update({over: view[signal] for over, signal in signals.items()})

    class Probe(fv.Method):
        name = "probe"

        def stages(self, shape: Any) -> Any:
            return (LayerStage(layer, reads=tuple(signals.values()), choose=choose),)

    with fv.drop(model, Probe()), torch.no_grad():
        model(**inputs)
    return seen
