"""PyramidDrop: the image shrinks in stages with depth, ranked by the prompt's last token each time.

Paper: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
Reduction", CVPR 2025, arXiv:2410.17247.

Before layer l: s_j = mean over heads of softmax(q_last · k_j / √d) with the queries and keys of layer l itself; the
int(r_l · N) tokens with the largest s stay, N being those that entered the decoder.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor

from foveate.contract import (
    Arriving,
    Attention,
    Budgeted,
    Layers,
    LayerStage,
    LayerView,
    Positions,
    Preset,
    Shape,
    Shares,
    Space,
    Stage,
    Unit,
    check_depth,
    check_lengths,
    free_settings,
    geometric,
    numbering,
    quarters,
)
from foveate.errors import SettingError

__all__ = ["METHOD", "PyramidDrop"]

LAYERS, RATIOS = (8, 16, 24), (0.5, 0.25, 0.125)  # the paper's, for 32 layers


class PyramidDrop(Budgeted):
    """Cuts that each leave a share of the image's original tokens.

    The names are those of the authors' command line. Different from the released code: prompts of any length (the code
    cuts them off at 2,048 tokens), batches, several images (each keeps its share) and padding on the left; float32
    scores, ties to the lower index; and a cut never leaves less than one token.

    Attributes:
        layer_list: Decoder layers whose input is cut, strictly ascending: by default a quarter, half and three quarters
            of the depth, the paper's (8, 16, 24) of 32 and (7, 14, 21) of 28. With a budget a sixteenth, a quarter and
            half of the depth, since the paper's layers meet none below a quarter.
        image_token_ratio_list: Share of the *original* tokens that each cut leaves: the paper's (0.5, 0.25, 0.125).
        retention: Instead of the ratios: the mean share of an image's tokens that a decoder layer processes. The ratios
            are then q, q², q³, …, with q solved for every image.
        tokens: The same as a number of tokens.
        positions: "reindex" renumbers the rows after each cut, as the released code does; "keep" keeps position ids.
            Families with M-RoPE always keep.
        scope: Rank the tokens of each "image" or video (the code has one image a sample), of the whole "sample", or of
            each "frame".

    Raises:
        SettingError: If the lists differ in length, or ratios grow.
    """

    name = "pyramiddrop"
    schedule: ClassVar[tuple[str, ...]] = ("image_token_ratio_list",)

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"positions": ("reindex", "keep")}

    layer_list: Layers | None = None
    image_token_ratio_list: Shares | None = None
    positions: Positions = "reindex"
    scope: Unit = "image"

    def check_settings(self) -> None:
        layers = LAYERS if self.layer_list is None else self.layer_list
        ratios = RATIOS if self.image_token_ratio_list is None else self.image_token_ratio_list
        if self.image_token_ratio_list is not None:
            check_lengths("layer_list", layers, "image_token_ratio_list", ratios)
        if list(ratios) != sorted(ratios, reverse=True):
            raise SettingError(f"image_token_ratio_list are shares of the original tokens, so none may grow: {ratios}.")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.retention == 1:
            return ()
        paid = Attention(rows="last", layer="next", heads="mean")
        return tuple(
            LayerStage(
                layer,
                reads=(paid,),
                count=partial(self._count, shape.depth, index),
                score=_attended,
                unit=self.scope,
                positions=numbering(self.positions),
            )
            for index, layer in enumerate(self._cuts(shape.depth))
        )

    def _cuts(self, depth: int) -> tuple[int, ...]:
        if self.layer_list is not None:
            return self.layer_list
        return quarters(depth) if self.budget is None else _early(depth)

    def _count(self, depth: int, index: int, arriving: Arriving) -> int:
        """Tokens that the cut of this index leaves."""
        return int(self.counts(depth, arriving)[index])

    def solve(self, depth: int, entered: int, started: int) -> tuple[int, ...]:
        cuts = self._cuts(depth)
        if self.budget is not None:
            curve = geometric(started, len(cuts))
            return self.rounded(curve, cuts, depth, entered, started)
        ratios = RATIOS if self.image_token_ratio_list is None else self.image_token_ratio_list
        check_lengths("layer_list", cuts, "image_token_ratio_list", ratios)
        return tuple(max(1, int(started * ratio)) for ratio in ratios)

    def space(self, depth: int) -> Space:
        return Space(build=self._cutting, depth=depth, settings=free_settings(self))

    def _cutting(
        self, layers: tuple[int, ...], counts: Sequence[float], entered: int, settings: Mapping[str, Any]
    ) -> Self:
        """This setting with other cuts, which leave so many of `entered` tokens; half a token keeps clear of
        truncation."""
        ratios = tuple(min(1.0, (count + 0.5) / entered) for count in counts)
        return dataclasses.replace(
            self, layer_list=layers, image_token_ratio_list=ratios, retention=None, tokens=None, **settings
        )


def _attended(view: LayerView) -> Tensor:
    return view.attention


def _early(depth: int) -> tuple[int, ...]:
    """A sixteenth, a quarter and half of the depth: 2, 8 and 16 of 32 layers."""
    check_depth(depth)
    first = max(1, round(depth / 16))
    second = max(first + 1, round(depth / 4))
    return first, second, max(second + 1, round(depth / 2))


def _preset(budget: str, layers: tuple[int, ...], ratios: tuple[float, ...], source: str) -> Preset:
    method = PyramidDrop(layer_list=layers, image_token_ratio_list=ratios)
    return Preset(f"pyramiddrop/llava-1.5-7b/{budget}", method, 32, 576, source)


def _scaled(model: str, budget: str, depth: int, vision_tokens: int | None, source: str) -> Preset:
    method = PyramidDrop(image_token_ratio_list=RATIOS)
    return Preset(f"pyramiddrop/{model}/{budget}", method, depth, vision_tokens, source)


_DERIVED = "derived: q, q², q³ of the tokens for this mean over layers"

PyramidDrop.presets = (
    _preset("paper", LAYERS, RATIOS, "paper and released code"),
    _preset("192", (2, 8, 16), (0.5591, 0.3126, 0.1754), _DERIVED),  # 322, 180, 101 of 576
    _preset("192-late", LAYERS, (0.2535, 0.0643, 0.0157), f"{_DERIVED}, at the paper's layers"),  # 146, 37, 9
    _preset("128", (2, 8, 16), (0.4202, 0.1754, 0.0747), _DERIVED),  # 242, 101, 43
    _preset("64", (2, 8, 16), (0.191, 0.0365, 0.007), _DERIVED),  # 110, 21, 4
    _scaled("llava-next-7b", "paper", 32, 2928, "paper, the same ratios for each image"),
    _scaled("llava-onevision-7b", "46.9%", 28, 6272, "derived: the paper's ratios before layers 7, 14 and 21"),
    _scaled("qwen2.5-vl-7b", "46.9%", 28, None, "derived: the paper's ratios before layers 7, 14 and 21"),
)

METHOD = PyramidDrop
