"""Uniform: the control that keeps evenly spaced tokens. Same schedule as other methods, no scores."""

from torch import Tensor

from foveate.contract import LayerView
from foveate.contract.cuts import ManyCuts
from foveate.core.rank import spread


class Uniform(ManyCuts):
    """Keeps tokens at even steps, in raster order.

    A step that divides the width of the grid keeps whole columns (3, 4, 6, 8 and 12 on 24 x 24). Check the step when a
    result looks surprisingly good or bad.

    Attributes:
        layers, keep, retention, tokens, min_keep, scope: See `Cuts`. Layer 0 cuts before the decoder.
    """

    name = "uniform"

    def pick(self, view: LayerView, count: int) -> Tensor:
        return spread(len(view), count, device=view.device)
