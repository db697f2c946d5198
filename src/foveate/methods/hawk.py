"""HAWK: before layer 0, score each token by the question's queries in every head, and weight the heads.

Paper: Zhu et al., "HAWK: Head Importance-Aware Visual Token Pruning in Multimodal Models", CVPR 2026, arXiv:2604.07812.
Reads layer 0's queries of the text and keys of the vision tokens, computed ahead of the layer. Needs no attention
matrix.

    a[h, v] = mean over the asking rows of q_h · k_h(v) / √(head size), before RoPE and without a softmax
    s[v] = Σ_h weights[h] · a[h, v] / ‖a[h, ·]‖, and the tokens with the largest s stay
"""

import math
from typing import Literal

import torch
from torch import Tensor

from foveate.contract import Arriving, Count, LayerView, Once, Part, Positions, Products, Signal
from foveate.core.rank import spread, top
from foveate.errors import SettingError


class HAWK(Once):
    """Keeps the tokens that the question's queries in layer 0 match best.

    Each head is normalised over an image's tokens, and signs are kept. Without text after the sample's last image,
    tokens at even steps stay.

    Attributes:
        weights: Weight of each head of layer 0. None: all equal. Published for one model; see the presets.
        leave_out: How many rows to ignore at the beginning and at the end of the text after the last image.
        keep, tokens, retention, positions: See `Once`.
        rounding: Round the count to the "nearest" number of tokens, or "up", as the released code does.
        scope: Rank each "image" separately, or the whole "sample" at once, as the code does; then counts are those of
            all its images together.

    Raises:
        SettingError: During the forward, if the number of weights differs from the number of heads in layer 0.
    """

    name = "hawk"

    keep: Part | None = None
    positions: Positions = "keep"
    weights: tuple[float, ...] | None = None
    leave_out: tuple[Count, Count] = (1, 5)
    rounding: Literal["nearest", "up"] = "nearest"
    scope: Literal["image", "sample"] = "image"

    @property
    def reads(self) -> tuple[Signal, ...]:  # type: ignore[override]  # depends on settings
        return (Products(self.leave_out),)

    def rows(self, arriving: Arriving) -> int:
        if self.rounding == "nearest":
            return super().rows(arriving)
        return min(arriving.tokens, max(1, math.ceil(self.mean(arriving)) - arriving.reserved))

    def pick(self, view: LayerView, count: int) -> Tensor:
        products = view.products.nan_to_num(0, 0, 0)  # (tokens, heads)
        heads = products.shape[1]
        if self.weights is not None and len(self.weights) != heads:
            raise SettingError(f"hawk: layer 0 has {heads} heads, so give as many weights; got {len(self.weights)}.")
        shares = products / torch.linalg.vector_norm(products, dim=0).clamp(min=1e-12)
        if self.weights is not None:
            # Create each weight on the device: torch.tensor(weights) would copy from the host.
            weights = [products.new_full((), weight) for weight in self.weights]
            shares = shares * torch.stack(weights)
        scores = shares.sum(dim=1)
        nobody_asks = (products == 0).all()
        return torch.where(nobody_asks, spread(len(view), count, view.device), top(scores, count))
