"""What follows from a method's stages: layers that cut, tokens left in each layer, what is read and what that costs.

Each is a fold over the stages, written once; no method writes its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveate.core.grid import Grid, closing_rows
from foveate.core.signals import Attention, Hidden, Keys
from foveate.core.views import Arriving
from foveate.methods.stages import CacheStage, LayerStage, Place, Stage

__all__ = [
    "at",
    "cached_layers",
    "coarsened",
    "cut_layers",
    "held_rows",
    "in_order",
    "layer_plan",
    "reads_text",
    "scoring_flops",
]


def in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Along a token's life; where two stand at one place, as they were written."""
    return tuple(sorted(stages, key=lambda stage: stage.order))


def at(stages: Sequence[Stage], *places: Place) -> tuple[Stage, ...]:
    """Those that stand at these places."""
    return tuple(stage for stage in stages if stage.place in places)


def layer_stages(stages: Sequence[Stage]) -> tuple[LayerStage, ...]:
    """Those that stand before decoder layers."""
    return at(stages, Place.LAYER)  # type: ignore[return-value]


def cut_layers(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Decoder layers before which tokens may leave, ascending."""
    return tuple(sorted({stage.layer for stage in layer_stages(stages) if stage.drops}))


def cached_layers(stages: Sequence[Stage]) -> range:
    """Decoder layers whose KV cache is cut after the prefill: up to the last cut, which leaves the final tokens."""
    caches: tuple[CacheStage, ...] = at(stages, Place.CACHE)  # type: ignore[assignment]
    cuts = cut_layers(stages)
    if not caches or not cuts:
        return range(0)
    before_first = max(0, cuts[0] - 1)
    firsts = [cache.first_layer for cache in caches]
    first = min(before_first if layer is None else layer for layer in firsts)
    return range(first, cuts[-1])


def reads_text(stages: Sequence[Stage]) -> bool:
    """Whether the prompt's text decides what is left."""
    return any(stage.reads_text for stage in stages)


# -- how many tokens are left ---------------------------------------------------------------------------------


@dataclass
class Units:
    """The images (or frames) of a sample on their way through the stages.

    Attributes:
        images: What the host knows of each; None once a cut over the whole sample has left an unknown number of each.
        all: The same of all together.
    """

    images: list[Arriving] | None
    all: Arriving

    def after(self, stage: Stage) -> "Units | None":
        """What a stage leaves; None where the picture or the question decides."""
        if stage.unit == "sample" and stage.place is Place.LAYER:
            return self._after_all(stage.left(self.all))
        if self.images is None:
            return None
        images = []
        for image in self.images:
            count = stage.left(image)
            if count is None:
                return None
            images.append(replace(image, tokens=count))
        return Units(images, replace(self.all, tokens=sum(image.tokens for image in images)))

    def _after_all(self, left: int | None) -> "Units | None":
        if left is None:
            return None
        sample = replace(self.all, tokens=left)
        if left == self.all.tokens:
            return Units(self.images, sample)
        if self.images is not None and len(self.images) == 1:
            return Units([sample], sample)
        return Units(None, sample)  # which of the images they were is not known

    def entering_decoder(self) -> "Units":
        """The same where nothing stands between them and the decoder any more."""
        images = self.images and [replace(image, started=image.tokens) for image in self.images]
        return Units(images, replace(self.all, started=self.all.tokens))


def layer_plan(
    stages: Sequence[Stage], depth: int, sizes: Sequence[int], grids: Sequence[Sequence[Grid]] | None = None
) -> tuple[int, ...] | None:
    """Vision tokens that each of `depth` decoder layers processes, for a sample with images of these sizes.

    Args:
        stages: Of a method, in order.
        depth: Decoder layers.
        sizes: Vision tokens of each image as they enter the model, or of each frame where a stage goes by frame.
        grids: Rows and columns of each image's frames or views, newlines apart, if they are known.

    Returns:
        None where the picture or the question decides.
    """
    units: Units | None = _arriving(sizes, grids)
    for stage in stages:
        if stage.place < Place.LAYER and stage.drops and units is not None:
            units = _after_early(stage, units)
    if units is None:
        return None
    units = units.entering_decoder()
    cuts = [stage for stage in layer_stages(stages) if stage.drops]
    counts = []
    for layer in range(depth):
        for stage in cuts:
            if stage.layer == layer and units is not None and units.all.tokens:
                units = units.after(stage)
        if units is None:
            return None
        counts.append(units.all.tokens)
    return tuple(counts)


def _arriving(sizes: Sequence[int], grids: Sequence[Sequence[Grid]] | None) -> Units:
    """The images of a sample of which no token has left yet."""
    if grids is None:
        grids = [()] * len(sizes)
    total = sum(sizes)
    images = []
    for size, grid in zip(sizes, grids, strict=True):
        images.append(Arriving(size, size, size, grids=tuple(grid), in_sample=total))
    return Units(images, Arriving.all_of(total))


def _after_early(stage: Stage, units: Units) -> Units | None:
    """What a stage before the decoder leaves. It counts without newlines where the grids are known."""
    assert units.images is not None
    counts = []
    for image in units.images:
        newlines = 0
        if image.grids:
            newlines = image.tokens - sum(map(math.prod, image.grids))
        patches = image.tokens - newlines
        stays = closing_rows(newlines)
        left = stage.left(replace(image, tokens=patches, reserved=stays))
        if stage.keep is not None and not image.grids:  # of what share newlines are none is not known
            left = None
        if left is None:
            return None
        if left == patches:
            counts.append(image.tokens)
        else:
            counts.append(left + stays)
    images = [replace(image, tokens=count, grids=()) for image, count in zip(units.images, counts, strict=True)]
    return Units(images, replace(units.all, tokens=sum(counts)))


def coarsened(stages: Sequence[Stage], arriving: Arriving) -> tuple[Grid, ...]:
    """What the token grids of an image's frames or views become in front of the tower."""
    for stage in at(stages, Place.PIXELS):
        arriving = replace(arriving, grids=stage.coarsen(arriving))  # type: ignore[attr-defined]
    return arriving.grids


# -- what reading costs ---------------------------------------------------------------------------------------


def scoring_flops(stages: Sequence[Stage], depth: int, width: int, sizes: Sequence[int]) -> int:
    """FLOPs of scoring in a decoder of `depth` layers and residual width `width`, of a sample with these images: what
    signals take that the layers do not make themselves, and the stages' own arithmetic. Sorting does not count."""
    total = sum(sizes)
    plan = layer_plan(stages, depth, sizes)
    flops = 0
    for stage in stages:
        if stage.place < Place.LAYER and stage.flops is not None:
            flops += stage.flops(Arriving.all_of(total), width)
    if plan is None or min(plan) == total:  # where nothing is dropped, the stages do not run
        return flops
    for stage in layer_stages(stages):
        rows = (total, *plan)[stage.layer]  # what the layer before has processed arrives
        arriving = Arriving(rows, total, plan[0])
        if stage.flops is not None:
            flops += stage.flops(arriving, width)
        flops += _reading_flops(stage, rows, width)
    return flops


def _reading_flops(stage: LayerStage, rows: int, width: int) -> int:
    """Queries, keys and their products that are made for a stage alone: those of the layer to come."""
    ahead = [signal for signal in stage.reads if isinstance(signal, Attention) and signal.layer == "next"]
    keys = any(isinstance(signal, Keys) for signal in stage.reads)
    if not ahead and not keys:
        return 0
    queries = 0
    for signal in ahead:
        queries = max(queries, rows if signal.rows == "vision" else 1)
    projections = (queries + rows) * 2 * width**2
    return projections + 2 * queries * rows * width


def held_rows(stages: Sequence[Stage], tokens: Sequence[int]) -> tuple[int, ...]:
    """Rows of the residual stream that are remembered while each decoder layer runs, where these process so many vision
    tokens: what stages want to see again `back` layers later."""
    held: list[set[int]] = [set() for _ in tokens]  # of each layer: before which layers the rows were as remembered
    for stage in layer_stages(stages):
        for signal in stage.reads:
            if isinstance(signal, Hidden) and signal.back:
                entered = stage.layer - signal.back
                for layer in range(entered, stage.layer):
                    held[layer].add(entered)
    return tuple(count * len(layers) for count, layers in zip(tokens, held, strict=True))
