"""Uniform: the control that spreads what it keeps evenly. Same schedule, no score at all."""

from torch import Tensor

from foveate.contract import LayerView, Scheduled
from foveate.core.rank import spread


class Uniform(Scheduled):
    """Keeps tokens at even steps, in raster order.

    A step that divides the width of the grid keeps whole columns (3, 4, 6, 8 and 12 on 24 x 24): check the step when
    a result looks surprisingly good or bad.

    Attributes:
        layers, keep, retention, tokens, min_keep, scope: See `Scheduled`; layer 0 cuts before the decoder.
    """

    name = "uniform"

    def select(self, view: LayerView, count: int) -> Tensor:
        return spread(len(view), count, device=view.device)
