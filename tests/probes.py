"""Nine methods that do to a model what a method may do, one place and one kind of cut each.

The engine is proven with these on every family and kernel; what a method adds to it are signals and arithmetic, which
have tests of their own. Where a method of the package does it already, it is that with settings.
"""

from typing import Literal

import torch

from foveate.contract import (
    Hidden,
    ImageStage,
    ImageView,
    LayerStage,
    LayerView,
    PatchStage,
    PixelView,
    Shape,
    Stage,
    TowerAttention,
    TowerKeys,
)
from foveate.contract.method import Method
from foveate.contract.settings import Layers, Share
from foveate.methods.mustdrop import MustDrop
from foveate.methods.resize import Resize
from foveate.methods.visiondrop import VisionDrop

__all__ = ["KEEP_ALL", "PROBES", "SMALLEST", "ImageCut", "LayerCut", "OneLeft", "PatchCut"]


class PatchCut(Method):
    """Before the tower: the tokens with the brightest pixels stay, whichever frames they are in."""

    name = "patch cut"

    keep: Share = 0.5

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (PatchStage(keep=self.keep, score=self._brightness),)

    @staticmethod
    def _brightness(view: PixelView) -> torch.Tensor:
        return view.units.mean(dim=-1).flatten()


class ImageCut(Method):
    """Before the projector: what the tower attends to, or has keys of, stays; notes of both go along."""

    name = "image cut"

    keep: Share = 0.5

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        paid = TowerAttention(by="cls" if shape.cls else "patches")
        return (ImageStage(reads=(paid, TowerKeys()), keep=self.keep, score=self._score),)

    @staticmethod
    def _score(view: ImageView) -> torch.Tensor:
        return view.attention * view.keys.norm(dim=-1)


class LayerCut(Method):
    """Before layers: at random, by what moved through two layers, and by what was noted of the tokens before."""

    name = "layer cut"

    layers: Layers = (0, 2, 4)
    keep: Share = 0.6
    unit: Literal["sample", "image"] = "image"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        first, second, third = self.layers
        return (
            LayerStage(first, keep=self.keep, score=self._spread, unit=self.unit),
            LayerStage(second, reads=(Hidden(),), look=self._note, unit=self.unit),
            LayerStage(second, reads=(Hidden(back=2),), keep=self.keep, score=self._moved, unit=self.unit),
            LayerStage(third, reads=(Hidden(),), keep=self.keep, score=self._remembered, unit=self.unit),
        )

    @staticmethod
    def _spread(view: LayerView) -> torch.Tensor:
        return (view.tokens * 7 % 5).float()

    @staticmethod
    def _note(view: LayerView) -> dict[str, torch.Tensor]:
        return {"norm": view.hidden.float().norm(dim=-1)}

    @staticmethod
    def _moved(view: LayerView) -> torch.Tensor:
        return (view.hidden.float() - view.hidden_before.float()).norm(dim=-1) + view.notes["norm"]

    @staticmethod
    def _remembered(view: LayerView) -> torch.Tensor:
        return view.hidden.float().norm(dim=-1) - view.notes["norm"]


class OneLeft(MustDrop):
    """One token behind each cut, whatever the budget."""

    def solve(self, depth: int, entered: int, started: int) -> tuple[int, ...]:
        return (1,) * len(self.cuts(depth))


WINDOWS = {"filter": False, "merge_window": 2, "key_rate": 0.0}
AWAY = {"dominant": 0, "contextual": 0}
CACHED = {"pruning_layers": (1, 3), "merge_windows": False, "positions": "keep"}
LAYERS = {"layer_list": (2, 4), "reference": 25}
IMAGES = {"layer_list": (), "image_token_list": (), "reference": 25}

PROBES: dict[str, Method] = {
    "pixels": Resize(keep=0.4),
    "patch cut": PatchCut(),
    "tower merge": MustDrop(**WINDOWS, merge_threshold=-1.0),
    "image cut": ImageCut(),
    "image merge": VisionDrop(dominant=9, contextual=2, **IMAGES),
    "layer cut": LayerCut(),
    "layer merge": VisionDrop(**AWAY, **LAYERS, image_token_list=((9, 2), (5, 1))),
    "cache": MustDrop(**CACHED, global_thr=0.2, individual_thr=0.2),
}
"""By what they do."""
KEEP_ALL: dict[str, Method] = {
    "pixels": Resize(keep=1.0),
    "patch cut": PatchCut(keep=1.0),
    "tower merge": MustDrop(**WINDOWS, merge_threshold=2.0),
    "image cut": ImageCut(keep=1.0),
    "layer cut": LayerCut(keep=1.0),
    "layer merge": VisionDrop(**AWAY, **LAYERS, image_token_list=((10_000, 0), (10_000, 0)), positions="keep"),
    "cache": MustDrop(**CACHED, global_thr=0.0, individual_thr=0.0),
}
"""The same where nothing leaves; merging an image's tokens with a CLS adds one, so it has none."""
SMALLEST: dict[str, Method] = {
    "pixels": Resize(keep=0.001),
    "patch cut": PatchCut(keep=0.0),
    "image cut": ImageCut(keep=0.0),
    "image merge": VisionDrop(dominant=1, contextual=0, layer_list=(), image_token_list=(), reference=10_000),
    "layer cut": LayerCut(keep=0.0, unit="sample"),
    "layer merge": VisionDrop(**AWAY, layer_list=(2,), image_token_list=((1, 0),), reference=10_000),
    "cache": OneLeft(**CACHED, retention=0.5, key_rate=0.0),
}
"""The same where one token of an image is left, or one of each of its tiles; not where windows set the count."""
