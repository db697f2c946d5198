"""Derive from a method's stages which layers cut, the tokens that each layer processes, and what is read.

Each function walks through the stages in order, so no method has to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveate.contract.stages import CacheStage, DecodeStage, LayerStage, PixelStage, Place, Stage
from foveate.core.grid import Grid, closing_rows
from foveate.core.views import Arriving
from foveate.errors import SettingError


def in_order(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Sort the stages in the order in which tokens meet them. Stages at the same place keep their order."""
    return tuple(sorted(stages, key=lambda stage: stage.order))


def at(stages: Sequence[Stage], *places: Place) -> tuple[Stage, ...]:
    """Return the stages at these places."""
    return tuple(stage for stage in stages if stage.place in places)


def layer_stages(stages: Sequence[Stage]) -> tuple[LayerStage, ...]:
    """Return the stages before decoder layers."""
    return at(stages, Place.LAYER)  # type: ignore[return-value]


def cut_layers(stages: Sequence[Stage]) -> tuple[int, ...]:
    """Return the decoder layers before which tokens may be dropped, ascending."""
    return tuple(sorted({stage.layer for stage in layer_stages(stages) if stage.drops}))


def refuse_shallow(name: str, stages: Sequence[Stage], depth: int) -> None:
    """Refuse a decoder that is too shallow for the stages of a method.

    Raises:
        SettingError: If a stage names a layer beyond the decoder's `depth` layers.
    """
    reads = reading(stages)
    named = [*cut_layers(stages), *([] if reads is None else [reads.layer])]
    late = [layer for layer in named if layer >= depth]
    if late:
        raise SettingError(
            f"{name} names layers {late}, but the decoder has layers 0 to {depth - 1}. Give earlier layers."
        )


def openers(stages: Sequence[Stage]) -> frozenset[tuple[int, ...]]:
    """Return the owners of stages that cut before layer 0.

    Budgets of these owners count from the tokens that enter layer 0; all others count from the tokens that layer 0
    processes. In "divprune:keep=0.25+v2drop" V2Drop's budget applies to the quarter that DivPrune leaves.
    """
    return frozenset(stage.owner for stage in layer_stages(stages) if stage.drops and stage.layer == 0)


def cached_layers(stages: Sequence[Stage]) -> range:
    """Return the decoder layers whose KV cache is cut after the prefill.

    Layers from the last cut on hold only the final tokens already. Cuts before 3, 7, 11 and 15 give layers 2 to 14.
    """
    caches: tuple[CacheStage, ...] = at(stages, Place.CACHE)  # type: ignore[assignment]
    cuts = cut_layers(stages)
    if not caches or not cuts:
        return range(0)
    before = max(0, cuts[0] - 1)
    first = min(before if cache.first_layer is None else cache.first_layer for cache in caches)
    return range(first, cuts[-1])


def reads_text(stages: Sequence[Stage]) -> bool:
    """Return whether the number or choice of tokens left depends on the prompt's text."""
    return any(stage.reads_text for stage in stages if stage.place is not Place.DECODE)


def reading(stages: Sequence[Stage]) -> DecodeStage | None:
    """Return the stage that limits what decoding reads, or None. A stage that reads everything counts as None."""
    decoding: tuple[DecodeStage, ...] = at(stages, Place.DECODE)  # type: ignore[assignment]
    return next((stage for stage in decoding if stage.keep is None or stage.keep < 1), None)


def read_plan(stages: Sequence[Stage], cached: Sequence[int]) -> tuple[int, ...]:
    """Return the cached vision tokens that one decoding step reads in each layer.

    A stage whose count depends on the question counts as reading everything.
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
    """How many tokens of a sample's images (or frames) are left at some point along the stages.

    Attributes:
        images: Counts of each image. None after a cut that ranks the whole sample leaves unknown counts per image.
        all: Counts of all images together.
    """

    images: list[Arriving] | None
    all: Arriving

    def after(self, stage: Stage) -> "Units | None":
        """Return the counts after a stage. None if they depend on the image or the question."""
        early = stage.place < Place.LAYER
        if stage.unit == "sample" and not early:
            left = stage.left(self.all)
            if left is None:
                return None
            sample = replace(self.all, tokens=left)
            if left == self.all.tokens:
                return Units(self.images, sample)
            # A cut that ranks several images together leaves unknown counts of each.
            return Units([sample] if self.images is not None and len(self.images) == 1 else None, sample)
        if self.images is None:
            return None
        images = []
        for image in self.images:
            left = count_before_decoder(stage, image) if early else stage.left(image)
            if left is None:
                return None
            images.append(replace(image, tokens=left, grids=() if early else image.grids))
        return Units(images, replace(self.all, tokens=sum(image.tokens for image in images)))

    def with_start(self, start: "Units") -> "Units":
        """Return these counts with `started` taken from `start`, the counts where a method's budget begins."""
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
    """Return the vision tokens that each of `depth` decoder layers processes for one sample.

    Args:
        stages: Stages of a method, in order.
        depth: Decoder layers.
        sizes: Vision tokens of each image as they enter the model, or of each frame if a stage ranks by frame.
        grids: Rows and columns of each image's frames or views, without newlines, if known.
        videos: For each image whether it is a video, so that its grids are frames, if known.

    Returns:
        None if the counts depend on the image or the question, or on grids or frames that are not given.
    """
    units = units_by_layer(stages, depth, units_of(sizes, grids, videos))
    if units is None:
        return None
    return tuple(layer.all.tokens for layer in units)


def units_by_layer(stages: Sequence[Stage], depth: int, arriving: Units) -> list[Units] | None:
    """Return the counts of `layer_plan` per image where they are known."""
    units: Units | None = arriving
    for stage in stages:
        if stage.place < Place.LAYER and stage.drops and units is not None:
            units = units.after(stage)
    if units is None:
        return None
    entering = begun = units = units.with_start(units)
    first = openers(stages)
    # A cut before layer 3 shows in the counts from layer 3 on: 576, 576, 576, 288, …
    cuts = [stage for stage in layer_stages(stages) if stage.drops]
    left = []
    for layer in range(depth):
        for stage in cuts:
            if stage.layer == layer and units.all.tokens:
                start = entering if stage.owner in first else begun
                units = units.with_start(start).after(stage)
                if units is None:
                    return None
        if layer == 0:
            begun = units
        left.append(units)
    return left


def units_of(sizes: Sequence[int], grids: Sequence[Sequence[Grid]] | None, videos: Sequence[bool] | None) -> Units:
    """Return the counts of a sample's images before any stage."""
    kinds: Sequence[bool | None] = videos or [None] * len(sizes)
    images = []
    for size, grid, video in zip(sizes, grids or [()] * len(sizes), kinds, strict=True):
        # Without grids, neither the number of newlines nor the tokens per frame are known.
        kind = video if grid else None
        images.append(Arriving(size, size, size, grids=tuple(grid), video=kind))
    return Units(images, Arriving.all_of(sum(sizes)))


def count_before_decoder(stage: Stage, image: Arriving) -> int | None:
    """Return how many tokens of an image a stage before the decoder leaves, newlines included; None if unknown.

    Stages do not see newlines, so they are counted apart. A LLaVA-NeXT image of one tile has 576 patches and one
    closing newline: a stage that keeps 100 patches leaves 101 tokens. Newlines after each row of patches stay only if
    all patches stay.
    """
    if stage.keep is not None and not image.grids:
        return None  # the stage keeps a share of the patches, whose number is unknown
    newlines = 0
    if image.grids:
        newlines = image.tokens - sum(rows * columns for rows, columns in image.grids)
    patches = image.tokens - newlines
    closing = closing_rows(newlines)
    left = stage.left(replace(image, tokens=patches, reserved=closing))
    if left == patches:
        return image.tokens
    return None if left is None else left + closing


def coarse_grids(stages: Sequence[Stage], arriving: Arriving) -> tuple[Grid, ...]:
    """Return the token grids of an image's frames or views after the pixel stages."""
    for stage in stages:
        if isinstance(stage, PixelStage):
            arriving = replace(arriving, grids=stage.coarsen(arriving))
    return arriving.grids
