"""Longest: keep the vision tokens with the longest hidden states. Paper: authors, title, venue, arXiv number."""

from torch import Tensor

from foveate.contract import Hidden, LayerView, Once, Part, Positions

__all__ = ["Longest"]


class Longest(Once):
    """Keep the tokens whose rows have the largest L2 norm as they enter the decoder, image by image.

    Attributes:
        keep, tokens, retention, positions: See `Once`. By default, a third of the tokens is kept.
    """

    name = "longest"
    usual = 1 / 3
    reads = (Hidden(),)

    keep: Part | None = None
    positions: Positions = "reindex"

    def score(self, view: LayerView, layer: int) -> Tensor:
        """Return a score per token, (tokens,) float32. The highest scores are kept; on a tie, the earlier token."""
        return view.hidden.float().square().sum(dim=-1)
