"""Longest: keep the vision tokens whose hidden states are longest. Paper: who, title, where, arXiv number."""

from torch import Tensor

from foveate.contract import Arriving, Counted, Hidden, LayerStage, LayerView, Shape, Stage

__all__ = ["Longest"]


class Longest(Counted):
    """The tokens of which the rows that enter the decoder have the largest L2 norm; each image by itself.

    Attributes:
        keep, tokens, retention, positions: See `Counted`. The default keeps a third.
    """

    name = "longest"
    usual = 1 / 3

    def stage(self, shape: Shape) -> Stage:
        return LayerStage(
            0,
            reads=(Hidden(),),
            count=self.rows,
            score=lengths,
            unit="image",
            positions=self.positions,
            flops=arithmetic,
        )


def lengths(view: LayerView) -> Tensor:
    """A number for each token, (tokens,) float32; those with the highest are kept, of equals the first."""
    return view.hidden.float().norm(dim=-1)


def arithmetic(arriving: Arriving, width: int) -> int:
    """FLOPs: a square and a sum for each number of each token."""
    return 2 * width * arriving.tokens
