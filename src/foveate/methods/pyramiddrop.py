"""PyramidDrop: keep fewer vision tokens in each of several stages, ranked by the attention of the prompt's last token.

Paper: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy
Reduction", CVPR 2025, arXiv:2410.17247.

Before layer l: s_j = mean over heads of softmax(q_last · k_j / √d) with the queries and keys of layer l itself; the
int(r_l · N) tokens with the largest s stay, where N tokens entered the decoder.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from foveate.contract import Attention, Cuts, FallingShares, Layers, Positions, Unit


class PyramidDrop(Cuts):
    """Keeps a smaller share of the image's original tokens at each of several layers.

    The settings have the names of the authors' command line. Each image keeps its share. A cut never leaves less than
    one token.

    Attributes:
        layer_list: Decoder layers whose input is cut, strictly ascending. By default a quarter, half and three quarters
            of the depth: the paper's (8, 16, 24) of 32 and (7, 14, 21) of 28. With a budget a sixteenth, a quarter and
            half of the depth, because the paper's layers meet no budget below a quarter.
        image_token_ratio_list: Share of the *original* tokens that each cut leaves: the paper's (0.5, 0.25, 0.125).
        retention, tokens: Instead of the ratios: a budget; see `Cuts`. The ratios are then q, q², q³, …, with q solved
            for every image.
        positions: See `Positions`. The released code renumbers.
        scope: Rank the tokens of each "image" or video (the code has one image a sample), of the whole "sample", or of
            each "frame".

    Raises:
        SettingError: If the lists differ in length, or ratios grow.
    """

    name = "pyramiddrop"
    layers_setting = "layer_list"
    usual_layers = (8, 16, 24)
    reads = (Attention(rows="last", layer="next", heads="mean"),)  # s_j
    falls = "geometric"
    usual_keep = (0.5, 0.25, 0.125)
    schedule = ("image_token_ratio_list",)
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"positions": ("reindex", "keep")}

    layer_list: Layers | None = None
    image_token_ratio_list: FallingShares | None = None
    positions: Positions = "reindex"
    scope: Unit = "image"

    def usual_at(self, depth: int) -> tuple[int, ...]:
        return self.scaled(self.usual_layers if self.budget is None else (2, 8, 16), depth, least=1)

    def left_by(self, value: float, entered: int, started: int) -> int:
        return max(1, int(started * value))
