"""What the vision tower and the projector cost, of pictures as they come or made smaller."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from foveate.contract import follow
from foveate.contract.stages import Stage, ThinStage
from foveate.core.flops import attention, linear, vit_block
from foveate.core.grid import Grid, closing_rows
from foveate.core.views import Arriving
from foveate.cost._prompt import Grids, PromptLengths
from foveate.errors import SettingError
from foveate.families.base import Family
from foveate.families.shape import PicturesRun, TowerShape
from foveate.families.tower import feature_layers


class Flops(NamedTuple):
    """Of the tower, of the projector and of picking the rows that late blocks run on; and how many each block runs on,
    where some run on fewer. None: not known."""

    tower: int | None
    projector: int | None
    picking: int = 0
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Thinning:
    """Blocks of a tower that run on some rows.

    Attributes:
        stage: Says how many, of each picture; None: `ran` does.
        first: The first of them.
        end: The first block that does not run, as nobody reads what it would make.
        windowed: How many of them look through windows. Of a window as large a share of the rows is taken to stay as of
            its picture: how many do, the picture decides.
        ran: Rows of each picture that run.
    """

    stage: ThinStage | None
    first: int
    end: int
    windowed: int
    ran: tuple[int, ...] = ()

    @classmethod
    def of(cls, family: type[Family], config: Any, stages: Sequence[Stage]) -> Self | None:
        """That of a method's stages; None where all blocks run on all rows."""
        stage = next((stage for stage in stages if isinstance(stage, ThinStage)), None)
        if stage is None:
            return None
        shape = family.tower_shape(config)
        if shape is None:  # the tower is not counted
            return None
        end = max(feature_layers(config, shape.depth)) + 1
        first = stage.first(end)
        if first == end:  # all blocks run, on all rows
            return None
        if shape.windowed:
            seeing = getattr(config.vision_config, "fullatt_block_indexes", ())
        else:
            seeing = range(shape.depth)
        return cls(stage, first, end, sum(index not in seeing for index in range(first, end)))

    @classmethod
    def as_ran(
        cls, family: type[Family], config: Any, prompt: PromptLengths, grids: Grids | None, ran: Sequence[Sequence[int]]
    ) -> Self:
        """That of patches which left before the tower and came back behind it: rows of each picture of each image."""
        shape, rows = family.tower_shape(config), list[int]()
        assert shape is not None  # of a tower whose patches are known
        for image, of_image in enumerate(ran):
            here = slice(image, image + 1)
            alone = replace(prompt, sizes=prompt.sizes[here], pictures=prompt.pictures and prompt.pictures[here])
            pictures = _pictures(family, config, alone, grids and grids[here]).grids
            # In a batch of pictures each has as many rows as the one with most.
            longest = of_image
            if not shape.joined:
                longest = [max(itertools.chain(*ran))] * len(of_image)
            rows += longest or [tall * wide * shape.patches for tall, wide in pictures]
        return cls(None, 0, max(feature_layers(config, shape.depth)) + 1, 0, tuple(rows))

    def left(self, rows: int) -> int:
        """How many of a picture's rows run, by the stage."""
        assert self.stage is not None
        left = self.stage.left(Arriving.all_of(rows))
        assert left is not None  # a stage that decides by what it sees is refused where it is made
        return left

    def flops(self, rows: int, left: int, width: int, grids: tuple[Grid, ...]) -> int:
        """What picking costs in a picture, and finding the nearest row for each; no grids where some rows have left."""
        flops = None if self.stage is None else self.stage.flops
        picks = 0
        if flops is not None:
            picks = flops(replace(Arriving.all_of(rows), grids=grids), width)
        return picks + 2 * rows * left * width


def tower_flops(
    family: type[Family], config: Any, prompt: PromptLengths, grids: Grids | None, thinning: Thinning | None = None
) -> Flops:
    """FLOPs of the tower and of the projector; None where they are not known.

    Args:
        family: Knows its tower.
        config: The model's.
        prompt: What goes in.
        grids: Rows and columns of each image's frames or views, if the caller gave any: some towers' cost depends on
            them.
        thinning: Blocks that run on some rows.
    """
    if not prompt.vision:
        return Flops(0, 0)
    shape = family.tower_shape(config)
    if shape is None:
        return Flops(None, None)
    return _flops(shape, _pictures(family, config, prompt, grids), None, thinning)


def smaller_tower_flops(
    family: type[Family],
    config: Any,
    stages: Sequence[Stage],
    ranked: Sequence[int],
    grids: Grids,
    thinning: Thinning | None = None,
) -> Flops | None:
    """FLOPs of the tower where stages make pictures smaller; None if not known.

    Args:
        family: Knows its tower.
        config: The model's.
        stages: Of the method.
        ranked: Vision tokens of each image that a method counts.
        grids: Rows and columns of each image's frames or views.
        thinning: Blocks that run on some rows.
    """
    shape = family.tower_shape(config)
    if not family.runs_grids or shape is None:
        return None
    cells = [_coarsened(stages, tuple(grid), size) for grid, size in zip(grids, ranked, strict=True)]
    pictures = PicturesRun(tuple(itertools.chain.from_iterable(cells)))
    return _flops(shape, pictures, None, thinning)


def subset_tower_flops(
    family: type[Family],
    config: Any,
    prompt: PromptLengths,
    grids: Grids | None,
    tokens: Sequence[Sequence[int] | Tensor],
    thinning: Thinning | None = None,
) -> Flops:
    """FLOPs of the tower where it runs on the patches of these tokens alone, ascending for each image or video.

    Raises:
        SettingError: If an image has no such tokens, or the grids have to be given.
    """
    if len(tokens) != len(prompt.sizes):
        raise SettingError(
            f"tower_tokens must have one entry per image or video; got {len(tokens)} for {len(prompt.sizes)} in "
            "vision_tokens."
        )
    pictures = _pictures(family, config, prompt, grids)
    stays = [torch.zeros(size, dtype=torch.bool) for size in prompt.sizes]
    for of_image, places in zip(stays, tokens, strict=True):
        of_image[torch.as_tensor(places, dtype=torch.int64)] = True
    sizes = [rows * columns for rows, columns in pictures.grids]
    pieces = torch.split(torch.cat(stays), sizes)
    kept = [piece.view(grid) for piece, grid in zip(pieces, pictures.grids, strict=True)]
    shape = family.tower_shape(config)
    assert shape is not None  # of a tower that runs on some patches
    return _flops(shape, pictures, kept, thinning)


def _coarsened(stages: Sequence[Stage], grids: tuple[Grid, ...], size: int) -> tuple[Grid, ...]:
    """The token grids of an image of `size` vision tokens after the stages before the tower."""
    cells = sum(rows * columns for rows, columns in grids)
    newlines = closing_rows(size - cells)
    return follow.coarsened(stages, Arriving(cells, size, cells, newlines, grids))


# -- FLOPs --------------------------------------------------------------------------------------------------------


def _pictures(family: type[Family], config: Any, prompt: PromptLengths, grids: Grids | None) -> PicturesRun:
    """What runs through the tower, by the grids if the caller gave any and they tell it."""
    if grids and family.runs_grids:
        return PicturesRun(tuple(itertools.chain.from_iterable(grids)))
    return family.pictures_run(config, prompt.sizes, prompt.pictures)


def _flops(
    shape: TowerShape, pictures: PicturesRun, kept: Sequence[Tensor] | None = None, thinning: Thinning | None = None
) -> Flops:
    """See `Flops`; a multiply-add counts two.

    Args:
        shape: The tower's.
        pictures: That run through it.
        kept: Which tokens of each it runs on, (rows, columns) bool; None: all.
        thinning: Blocks that run on some rows.
    """
    tokens = [rows * columns for rows, columns in pictures.grids]
    windows = [_windows(shape, grid) for grid in pictures.grids]
    if kept is not None:
        tokens = [int(picture.sum()) for picture in kept]
        windows = [_windows_left(shape, picture) for picture in kept]
    projected = pictures.projected
    if projected is None:
        each = [shape.tokens or count + shape.extra for count in tokens]
        projected = sum(each)
    rows = [count * shape.patches for count in tokens]
    run, picking = [rows], 0
    if thinning is not None:
        run.append(list(thinning.ran) or [thinning.left(count) for count in rows])
        if len(run[1]) != len(rows):
            raise SettingError(f"tower_rows must have the rows of {len(rows)} pictures; got {run[1]}.")
        for count, left, grid in zip(*run, pictures.grids, strict=True):
            picking += thinning.flops(count, left, shape.width, (grid,) if kept is None else ())
    if shape.joined:
        run = [[sum(counts)] for counts in run]
    early, late = (shape.depth, 0) if thinning is None else (thinning.first, thinning.end - thinning.first)
    tower = sum(_picture(shape, count, early) for count in run[0])
    tower += late * sum(_block(shape, count) for count in run[-1])
    if shape.windowed:  # as if all blocks saw the whole picture; so what windows save is taken off
        few = 0 if thinning is None else thinning.windowed
        tower -= (shape.windowed - few) * sum(_saved(shape, of_picture) for of_picture in windows)
        if thinning is not None:
            left = [[thinning.left(sum(one)) * count / sum(one) for count in one] for one in windows if one]
            tower -= few * sum(_saved(shape, [round(count) for count in one]) for one in left)
    projector = projected * shape.projector + pictures.pooling
    if thinning is None:
        return Flops(tower, projector)
    counts = (sum(run[0]),) * thinning.first + (sum(run[1]),) * late
    return Flops(tower, projector, picking, counts)


def _block(shape: TowerShape, patches: int) -> int:
    """FLOPs of a block on one picture."""
    rows = patches + shape.cls_tokens
    return vit_block(rows, shape.width, shape.inner) + shape.gated * linear(rows, shape.width, shape.inner)


def _picture(shape: TowerShape, patches: int, blocks: int) -> int:
    """FLOPs of a tower of so many blocks on one picture."""
    rows, width, inner = patches + shape.cls_tokens, shape.width, shape.inner
    flops = linear(patches, shape.pixels, width) + blocks * _block(shape, patches)
    if shape.pooling_head:
        # One query, and an MLP behind its attention.
        flops += linear(1, width, width) + linear(rows, width, 2 * width)
        flops += attention(1, rows, width)
        flops += linear(1, width, width) + linear(1, width, inner, width)
    return flops


def _saved(shape: TowerShape, windows: Sequence[int]) -> int:
    """FLOPs that a block saves on a picture by looking through windows of so many patches."""
    patches = sum(windows)
    whole = attention(patches, patches, shape.width)
    return whole - sum(attention(count, count, shape.width) for count in windows)


def _windows(shape: TowerShape, grid: Grid) -> list[int]:
    """Patches of each window of a picture; those at its edges are smaller. None where no block looks through any."""
    if not shape.windowed:
        return []
    side = shape.window
    tall, wide = ([min(side, length - start) for start in range(0, length, side)] for length in grid)
    return [rows * columns * shape.patches for rows in tall for columns in wide]


def _windows_left(shape: TowerShape, kept: Tensor) -> list[int]:
    """Patches left in each window of a picture, of whose tokens (rows, columns) bool says which are kept."""
    if not shape.windowed:
        return []
    bands = torch.split(kept, shape.window)
    windows = [window for band in bands for window in torch.split(band, shape.window, dim=1)]
    return [int(window.sum()) * shape.patches for window in windows]
