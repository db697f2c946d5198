"""The cost of a method's scoring: of its own arithmetic, and of the signals that no layer computes anyway."""

from collections.abc import Sequence

from foveate.contract.follow import Units, count_before_decoder, layer_stages, units_by_layer, units_of
from foveate.contract.stages import LayerStage, Place, Stage, ThinStage
from foveate.core.grid import Grid
from foveate.core.signals import Signal
from foveate.core.views import Arriving
from foveate.errors import UnsupportedError


def scoring_flops(
    stages: Sequence[Stage],
    depth: int,
    width: int,
    sizes: Sequence[int],
    grids: Sequence[Sequence[Grid]] | None = None,
    videos: Sequence[bool] | None = None,
) -> int:
    """FLOPs of scoring one sample.

    Counts the signals that the layers do not compute anyway, and the stages' own arithmetic. Sorting is not counted. A
    stage before the decoder skips an image of which it keeps everything.

    Args:
        stages: Stages of a method, in order.
        depth: Decoder layers.
        width: Width of the residual stream.
        sizes: Vision tokens of each image as they enter the model.
        grids, videos: See `foveate.contract.follow.layer_plan`.

    Raises:
        UnsupportedError: If a stage reads a signal whose cost is unknown.
    """
    for signal in [signal for stage in stages for signal in stage.reads]:
        if type(signal).__module__ != Signal.__module__:  # a signal defined elsewhere must not count as free
            raise UnsupportedError(f"The cost of {signal!r} is unknown. Define the signal in foveate.core.signals.")
    total = sum(sizes)
    arriving_units = units_of(sizes, grids, videos)
    units = units_by_layer(stages, depth, arriving_units)
    flops = 0
    for stage in stages:
        if stage.place < Place.LAYER and stage.flops is not None and not isinstance(stage, ThinStage):
            images = arriving_units.images or []
            if stage.drops:
                images = [image for image in images if count_before_decoder(stage, image) != image.tokens]
            flops += stage.flops(Arriving.all_of(sum(image.tokens for image in images)), width)
    if units is None or min(layer.all.tokens for layer in units) == total:  # unknown, or nothing dropped: no stage runs
        return flops
    for stage in layer_stages(stages):
        # The tokens that the previous layer processed; before layer 0, all of them.
        before = (arriving_units, *units)[stage.layer]
        arriving = Arriving(before.all.tokens, total, units[0].all.tokens)
        if stage.flops is not None:
            flops += stage.flops(arriving, width)
        flops += _reading_flops(stage, before, width)
    return flops


def _reading_flops(stage: LayerStage, units: Units, width: int) -> int:
    """FLOPs of the coming layer's queries, keys and products that are computed only for this stage."""
    rows = units.all.tokens
    images = [image.tokens for image in units.images or [units.all]]
    asked = [signal.queries(rows, images) for signal in stage.reads]
    queries = max((count for count in asked if count is not None), default=None)
    if queries is None:
        return 0
    # A row times a (width, width) matrix takes 2 · width² FLOPs; a query times a key takes 2 · width over all heads.
    projections = (queries + rows) * 2 * width**2
    products = queries * rows * 2 * width
    return projections + products
