"""What a type checker knows of methods and families that users write. Only type checkers read these lines."""

from typing import Literal

from torch import Tensor

import foveate as fv
from foveate.contract import Attention, Cut, Cuts, Features, Frames, Hidden, Keys, Layers, LayerView, Once, Part, Shares
from foveate.families.base import Family


class Moved(Cuts):
    name = "moved"
    reads = (Hidden(back=1), Keys(), Attention(rows="last"))
    usual_layers = (4, 8)
    usual_keep = (0.5, 0.2)
    first_layer = 2
    unit = "image"
    falls = "geometric"
    schedule = ("keep",)

    layers: Layers | None = None
    keep: Shares | None = None
    over: Literal["net", "path"] = "net"

    def score(self, view: LayerView, layer: int) -> Tensor:
        return view.attention


class Entering(Once):
    name = "entering"
    reads = (Features(),)
    usual = 0.25
    halves_up = True

    keep: Part | None = None

    def pick(self, view: LayerView, count: int) -> Tensor | Cut:
        raise NotImplementedError


class Still(Frames):
    name = "still"
    usual = 0.5
    only_videos = True

    keep: Part | None = None

    def select(self, features: Tensor, count: int | None) -> Tensor:
        raise NotImplementedError


class Tiled(Family):
    model_type = "tiled"
    title = "Tiled"
    decoder = "model"
    mergers = ("merge",)
    tiled = True
    keeps_beside = True
    tower_blocks = "blocks"
    needs_all_rows = None
    shares_prefix = True
    closing_tokens = 1


def make() -> list[fv.Method]:
    fv.register_method(Moved)
    fv.register_family(Tiled)
    return [Moved(layers=(2, 4), keep=(0.5, 0.3)), Entering(keep=0.3) + Still(retention=0.2), Moved(tokens=64)]
