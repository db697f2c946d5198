"""What follows from a method's stages: layers that cut, tokens left in each layer, what is read and what that costs.

Each walks through the stages in order. It is written here once, so that no method has to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveate.contract.stages import CacheStage, DecodeStage, LayerStage, PixelStage, Place, Stage, ThinStage
from foveate.core.grid import Grid, closing_rows
from foveate.core.signals import Signal
from foveate.core.views import Arriving
from foveate.errors import SettingError, UnsupportedError


def in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages in the order in which tokens meet them; those at the same place as they were written."""
    return tuple(sorted(stages, key=lambda stage: stage.order))


def at(stages: Sequence[Stage], *places: Place) -> tuple[Stage, ...]:
    """The stages at these places."""
    return tuple(stage for stage in stages if stage.place in places)


def layer_stages(stages: Sequence[Stage]) -> tuple[LayerStage, ...]:
    """The stages before decoder layers."""
    return at(stages, Place.LAYER)  # type: ignore[return-value]


def cut_layers(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Decoder layers before which tokens may be dropped, ascending."""
    return tuple(sorted({stage.layer for stage in layer_stages(stages) if stage.drops}))


def refuse_shallow(name: str, stages: Sequence[Stage], depth: int) -> None:
    """Refuse a decoder of `depth` layers that is too shallow for the stages of a method.

    Raises:
        SettingError: If a cut lies outside the decoder.
    """
    late = [layer for layer in cut_layers(stages) if layer >= depth]
    if late:
        raise SettingError(
            f"{name} cuts before layers {late}, but the decoder has layers 0 to {depth - 1}. Give earlier layers, or a "
            "budget (retention=…), which fits any depth."
        )
    reads = reading(stages)
    if reads is not None and reads.layer >= depth:
        raise SettingError(
            f"{name} reads less from layer {reads.layer} on, but the decoder has layers 0 to {depth - 1}. Give an "
            "earlier layer."
        )


def opening(stages: Sequence[Stage]) -> frozenset[tuple[int, ...]]:
    """The owners of stages that cut before layer 0: they count from what enters it, others from what it processes.

    In "divprune:keep=0.25+v2drop" V2Drop's budget is for the quarter that DivPrune leaves there.
    """
    return frozenset(stage.owner for stage in layer_stages(stages) if stage.drops and stage.layer == 0)


def cached_layers(stages: Sequence[Stage]) -> range:
    """Decoder layers whose KV cache is cut after the prefill.

    Layers from the last cut on have seen the final tokens only. Cuts before 3, 7, 11 and 15 give layers 2 to 14.
    """
    caches: tuple[CacheStage, ...] = at(stages, Place.CACHE)  # type: ignore[assignment]
    cuts = cut_layers(stages)
    if not caches or not cuts:
        return range(0)
    before = max(0, cuts[0] - 1)
    first = min(before if cache.first_layer is None else cache.first_layer for cache in caches)
    return range(first, cuts[-1])


def reads_text(stages: Sequence[Stage]) -> bool:
    """Whether the prompt's text decides what is left."""
    return any(stage.reads_text for stage in stages if stage.place is not Place.DECODE)


def reading(stages: Sequence[Stage]) -> DecodeStage | None:
    """The stage that says what decoding reads, if any; one that reads all counts as none."""
    decoding: tuple[DecodeStage, ...] = at(stages, Place.DECODE)  # type: ignore[assignment]
    return next((stage for stage in decoding if stage.keep is None or stage.keep < 1), None)


def cached_plan(stages: Sequence[Stage], plan: Sequence[int]) -> tuple[int, ...]:
    """Vision tokens in each layer's cache once decoding starts, where layers process so many."""
    cut = cached_layers(stages)
    return tuple(plan[-1] if layer in cut else count for layer, count in enumerate(plan))


def read_plan(stages: Sequence[Stage], cached: Sequence[int]) -> tuple[int, ...]:
    """Vision tokens that a step of decoding reads in each layer, of those that are cached there.

    A stage whose count the question decides may read all, and counts so.
    """
    stage = reading(stages)
    if stage is None:
        return tuple(cached)
    read = []
    for layer, count in enumerate(cached):
        left = None
        if layer >= stage.layer and count:
            left = stage.left(Arriving.all_of(count))
        read.append(count if left is None else left)
    return tuple(read)


# -- how many tokens are left ---------------------------------------------------------------------------------


@dataclass
class Units:
    """How many tokens the images (or frames) of a sample have left, on their way through the stages.

    Attributes:
        images: For each image; None once a cut that ranks the whole sample has left an unknown number of each.
        all: For all images together.
    """

    images: list[Arriving] | None
    all: Arriving

    def after(self, stage: Stage) -> "Units | None":
        """The numbers behind a stage; None where the picture or the question decides."""
        early = stage.place < Place.LAYER
        if stage.unit == "sample" and not early:
            left = stage.left(self.all)
            if left is None:
                return None
            sample = replace(self.all, tokens=left)
            if left == self.all.tokens:
                return Units(self.images, sample)
            # Of several images it is not known how many tokens of each are left.
            return Units([sample] if self.images is not None and len(self.images) == 1 else None, sample)
        if self.images is None:
            return None
        images = []
        for image in self.images:
            left = _left_early(stage, image) if early else stage.left(image)
            if left is None:
                return None
            images.append(replace(image, tokens=left, grids=() if early else image.grids))
        return Units(images, replace(self.all, tokens=sum(image.tokens for image in images)))

    def counted_from(self, start: "Units") -> "Units":
        """These tokens for a stage whose method found those of `start` in the decoder."""
        images = self.images
        if images is not None and start.images is not None:
            pairs = zip(images, start.images, strict=True)
            images = [replace(image, started=entering.tokens) for image, entering in pairs]
        return Units(images, replace(self.all, started=start.all.tokens))


def layer_plan(
    stages: Sequence[Stage],
    depth: int,
    sizes: Sequence[int],
    grids: Sequence[Sequence[Grid]] | None = None,
    videos: Sequence[bool] | None = None,
) -> tuple[int, ...] | None:
    """Vision tokens that each of `depth` decoder layers processes, for a sample with images of these sizes.

    Args:
        stages: Of a method, in order.
        depth: Decoder layers.
        sizes: Vision tokens of each image as they enter the model, or of each frame where a stage ranks by frame.
        grids: Rows and columns of each image's frames or views, without newlines, if they are known.
        videos: Whether each is a video, so that its grids are frames, if that is known.

    Returns:
        None where the picture or the question decides, or grids and frames do and are not given.
    """
    units = _units_by_layer(stages, depth, _arriving(sizes, grids, videos))
    if units is None:
        return None
    return tuple(layer.all.tokens for layer in units)


def _units_by_layer(stages: Sequence[Stage], depth: int, arriving: Units) -> list[Units] | None:
    """`layer_plan`, image by image where that is known."""
    units: Units | None = arriving
    for stage in stages:
        if stage.place < Place.LAYER and stage.drops and units is not None:
            units = units.after(stage)
    if units is None:
        return None
    entering = begun = units = units.counted_from(units)
    first = opening(stages)
    # A cut before layer 3 counts from layer 3 on: 576, 576, 576, 288, …
    cuts = [stage for stage in layer_stages(stages) if stage.drops]
    left = []
    for layer in range(depth):
        for stage in cuts:
            if stage.layer == layer and units.all.tokens:
                start = entering if stage.owner in first else begun
                units = units.counted_from(start).after(stage)
                if units is None:
                    return None
        if layer == 0:
            begun = units
        left.append(units)
    return left


def _arriving(sizes: Sequence[int], grids: Sequence[Sequence[Grid]] | None, videos: Sequence[bool] | None) -> Units:
    """The images of a sample before any stage."""
    kinds: Sequence[bool | None] = videos or [None] * len(sizes)
    images = []
    for size, grid, video in zip(sizes, grids or [()] * len(sizes), kinds, strict=True):
        # Without grids it is not known how many tokens are newlines, so neither how many a frame has.
        kind = video if grid else None
        images.append(Arriving(size, size, size, grids=tuple(grid), video=kind))
    return Units(images, Arriving.all_of(sum(sizes)))


def _left_early(stage: Stage, image: Arriving) -> int | None:
    """Tokens of an image that a stage before the decoder leaves. Stages see no newlines, so these are counted apart.

    A LLaVA-NeXT image of one tile has 576 patches and a newline that closes it. A stage that leaves 100 patches leaves
    101 tokens. Newlines behind each row of patches stay only if all patches do.
    """
    if stage.keep is not None and not image.grids:
        return None  # a share of the patches, and how many tokens are patches is not known
    newlines = 0
    if image.grids:
        newlines = image.tokens - sum(rows * columns for rows, columns in image.grids)
    patches = image.tokens - newlines
    closing = closing_rows(newlines)
    left = stage.left(replace(image, tokens=patches, reserved=closing))
    if left == patches:
        return image.tokens
    return None if left is None else left + closing


def coarsened(stages: Sequence[Stage], arriving: Arriving) -> tuple[Grid, ...]:
    """The token grids of an image's frames or views after the stages before the tower."""
    for stage in stages:
        if isinstance(stage, PixelStage):
            arriving = replace(arriving, grids=stage.coarsen(arriving))
    return arriving.grids


# -- what reading costs ---------------------------------------------------------------------------------------


def scoring_flops(
    stages: Sequence[Stage],
    depth: int,
    width: int,
    sizes: Sequence[int],
    grids: Sequence[Sequence[Grid]] | None = None,
    videos: Sequence[bool] | None = None,
) -> int:
    """FLOPs of scoring a sample with images of these sizes.

    They are those of signals that the layers do not compute anyway, and of the stages' own arithmetic; sorting does not
    count. Before the decoder a stage does not look at an image of which it keeps everything.

    Args:
        stages: Of a method, in order.
        depth: Decoder layers.
        width: Width of the residual stream.
        sizes: Vision tokens of each image as they enter the model.
        grids, videos: See `layer_plan`.

    Raises:
        UnsupportedError: If a stage reads something of which it is not known what it costs.
    """
    for signal in [signal for stage in stages for signal in stage.reads]:
        if type(signal).__module__ != Signal.__module__:  # an author's own must not count as nothing
            raise UnsupportedError(f"What {signal!r} costs is not known: say it in foveate.core.signals.")
    total = sum(sizes)
    arriving_units = _arriving(sizes, grids, videos)
    units = _units_by_layer(stages, depth, arriving_units)
    flops = 0
    for stage in stages:
        if stage.place < Place.LAYER and stage.flops is not None and not isinstance(stage, ThinStage):
            images = arriving_units.images or []
            if stage.drops:
                images = [image for image in images if _left_early(stage, image) != image.tokens]
            flops += stage.flops(Arriving.all_of(sum(image.tokens for image in images)), width)
    if units is None or min(layer.all.tokens for layer in units) == total:  # nothing is dropped: no stage runs
        return flops
    for stage in layer_stages(stages):
        # What the layer before has processed; before layer 0, all.
        before = (arriving_units, *units)[stage.layer]
        arriving = Arriving(before.all.tokens, total, units[0].all.tokens)
        if stage.flops is not None:
            flops += stage.flops(arriving, width)
        flops += _reading_flops(stage, before, width)
    return flops


def _reading_flops(stage: LayerStage, units: Units, width: int) -> int:
    """Queries, keys and their products that are computed for a stage alone: those of the layer to come."""
    rows = units.all.tokens
    images = [image.tokens for image in units.images or [units.all]]
    asked = [signal.queries(rows, images) for signal in stage.reads]
    queries = max((count for count in asked if count is not None), default=None)
    if queries is None:
        return 0
    # A row times a (width, width) matrix takes 2 · width² FLOPs, a query times a key 2 · width over all heads.
    projections = (queries + rows) * 2 * width**2
    products = queries * rows * 2 * width
    return projections + products
