"""Longest: keep the vision tokens whose hidden states are longest. Paper: who, title, where, arXiv number."""

from torch import Tensor

from foveate.contract import Arriving, Hidden, LayerView, Once, Part, Positions

__all__ = ["Longest"]


class Longest(Once):
    """The tokens of which the rows that enter the decoder have the largest L2 norm; each image by itself.

    Attributes:
        keep, tokens, retention, positions: See `Once`. The default keeps a third.
    """

    name = "longest"
    usual = 1 / 3
    reads = (Hidden(),)

    keep: Part | None = None
    positions: Positions = "reindex"

    def score(self, view: LayerView, layer: int) -> Tensor:
        """A number for each token, (tokens,) float32; those with the highest are kept, of equals the first."""
        return view.hidden.float().norm(dim=-1)

    def flops(self, arriving: Arriving, width: int) -> int:
        """A square and a sum for each number of each token."""
        return 2 * width * arriving.tokens
