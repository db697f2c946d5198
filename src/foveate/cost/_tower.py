"""The cost of the vision tower and the projector, with and without a method that runs the tower on fewer patches."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foveate.contract import follow
from foveate.contract.stages import PixelStage, Stage, ThinStage
from foveate.core.grid import Grid, closing_rows
from foveate.core.views import Arriving
from foveate.cost._prompt import Grids, PromptLengths, RunCounts
from foveate.errors import SettingError
from foveate.families.base import Family
from foveate.families.tower import feature_layers
from foveate.families.vision import PictureLayout


@dataclass(frozen=True, slots=True)
class TowerFlops:
    """The FLOPs of a vision tower and its projector, as fitted by `foveate.cost._measured`.

    Attributes:
        grid: Rows and columns of tokens of a picture; None if pictures may have any size.
        unit: Patches per token.
        cls: Rows of a picture that are not patches.
        rows: FLOPs of each block per row. transformers runs all blocks, including those after the one that the
            projector reads.
        pairs: FLOPs of each block per pair of query row and key row.
        patches: Patches of the measured picture.
        beside: FLOPs of the tower outside its blocks, on the measured picture.
        projector: FLOPs of the projector, on the measured picture.
        frame: FLOPs of the projector, on a frame of a video.
        pooled: True if the projector makes a fixed number of tokens from a picture of any size.
        joined: True if rows attend to the rows of all pictures, as in a Pixtral without flash attention.
        windowed: Indices of the blocks with window attention.
        window: Side of a window, in tokens.
    """

    grid: Grid | None
    unit: int
    cls: int
    rows: tuple[int, ...]
    pairs: tuple[int, ...]
    patches: int
    beside: int
    projector: int
    frame: int
    pooled: bool
    joined: bool
    windowed: frozenset[int]
    window: int

    def projector_flops(self, picture: Tensor, is_frame: bool) -> int:
        """Return the FLOPs of the projector on a picture. `picture` marks the tokens that ran, (rows, columns) bool."""
        flops = self.frame if is_frame else self.projector
        if self.pooled:
            return flops
        return flops * int(picture.sum()) * self.unit // self.patches

    def windows(self, picture: Tensor) -> list[int]:
        """Return the patches in each window of a picture, (rows, columns) bool. Windows at the edges are smaller.

        Empty if no block has window attention.
        """
        if not self.windowed:
            return []
        # 5 x 5 tokens with windows of 2: bands of 2, 2 and 1 rows, each split into 2, 2 and 1 columns.
        bands = torch.split(picture, self.window)
        windows = [window for band in bands for window in torch.split(band, self.window, dim=1)]
        return [int(window.sum()) * self.unit for window in windows]

    def block(self, index: int, patches: Sequence[int], windows: Sequence[Sequence[int]]) -> int:
        """Return the FLOPs of a block.

        Args:
            index: The index of the block.
            patches: Patches of each picture.
            windows: Patches of each window of each picture.
        """
        rows = [count + self.cls for count in patches]
        looking = rows
        if self.joined:
            looking = [sum(rows)]
        if index in self.windowed:
            looking = [*itertools.chain(*windows)]
        return self.rows[index] * sum(rows) + self.pairs[index] * sum(count**2 for count in looking)


class Flops(NamedTuple):
    """FLOPs of the tower and the projector, None if unknown; and the rows of each block, empty if all blocks run on all
    rows."""

    tower: int | None
    projector: int | None
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures of a prompt and the tower that encodes them.

    Attributes:
        tower: The tower.
        family: The family.
        config: The model's config.
        prompt: The token counts.
        media: What these counts tell of each image or video.
        ranked: Vision tokens of each image that a method ranks.
        grids: Rows and columns of each image's frames or views, if the caller gave them. The cost of some towers
            depends on them.
    """

    tower: TowerFlops
    family: type[Family]
    config: Any
    prompt: PromptLengths
    media: Sequence[PictureLayout]
    ranked: Sequence[int]
    grids: Grids | None

    def flops(self, stages: Sequence[Stage], known: RunCounts) -> Flops:
        """Count the FLOPs of the tower and the projector. A multiply-add counts as two.

        Args:
            stages: The method's stages, in order.
            known: For a method that drops before the tower: `tower_tokens`, or `tower_rows` for families that restore
                dropped patches after the tower.

        Raises:
            SettingError: If `known` does not fit the images, or the grids are needed and missing.
        """
        tower, images = self.tower, self._run(stages, known.get("tower_tokens"))
        pictures = [*itertools.chain(*images)]
        patches = [int(picture.sum()) * tower.unit for picture in pictures]
        beside = sum(tower.beside * count // tower.patches for count in patches)
        projector = 0
        for medium, of_image in zip(self.media, images, strict=True):
            is_film = 0 < medium.frames == len(of_image)
            projector += sum(tower.projector_flops(picture, is_film) for picture in of_image)
        windows = [tower.windows(picture) for picture in pictures]

        late = self._rows_of(known.get("tower_rows") or ())
        thin = next((stage for stage in stages if isinstance(stage, ThinStage)), None)
        first = end = len(tower.rows)
        if late or thin is not None:
            end = max(feature_layers(self.config, end)) + 1  # the output of later blocks is not used
            first = 0 if thin is None else thin.first(end)
        if first == end:
            blocks = sum(tower.block(index, patches, windows) for index in range(len(tower.rows)))
            return Flops(beside + blocks, projector)
        narrow = windows
        if thin is not None:
            late = late or [_rows_left(thin, count) for count in patches]
            # Assumes that a window keeps the same share of rows as its picture; the actual number depends on the
            # picture.
            shares = [_rows_left(thin, sum(few)) / sum(few) if few else 0 for few in windows]
            narrow = [[round(share * count) for count in few] for share, few in zip(shares, windows, strict=True)]
        if len(late) != len(patches):
            raise SettingError(f"tower_rows must have the rows of {len(patches)} pictures; got {late}.")
        early = sum(tower.block(index, patches, windows) for index in range(first))
        behind = sum(tower.block(index, late, narrow) for index in range(first, end))
        counts = (sum(patches),) * first + (sum(late),) * (end - first)
        return Flops(beside + early + behind, projector, counts)

    def _run(self, stages: Sequence[Stage], tokens: Sequence[Sequence[int] | Tensor] | None) -> list[list[Tensor]]:
        """Mark the tokens that the tower runs on: for each picture of each image or video (rows, columns) bool.

        Args:
            stages: The method's stages; some shrink the grids.
            tokens: The indices of these tokens for each image or video; None for all tokens.
        """
        sizes = self.prompt.sizes
        if tokens is None:
            smaller = any(isinstance(stage, PixelStage) for stage in stages) and self.family.runs_grids
            grids: list[Sequence[Grid]] = []
            for index, size in enumerate(self.ranked):
                if smaller and self.prompt.grids:
                    of_image = tuple(self.prompt.grids[index])
                    cells = sum(rows * columns for rows, columns in of_image)
                    arriving = Arriving(cells, size, cells, closing_rows(size - cells), of_image)
                    grids.append(follow.coarse_grids(stages, arriving))
                else:
                    grids.append(self._of_image(index))
            return [[torch.ones(grid, dtype=torch.bool) for grid in of_image] for of_image in grids]
        if len(tokens) != len(sizes):
            raise SettingError(
                f"tower_tokens must have one entry per image or video; got {len(tokens)} for {len(sizes)} in "
                "vision_tokens."
            )
        run = []
        for index, (size, places) in enumerate(zip(sizes, tokens, strict=True)):
            # Indices through an image's tokens -> a mask -> one mask per picture: 0, 5 of two 2 x 2 pictures
            # -> [[1, 0], [0, 0]] and [[0, 1], [0, 0]].
            runs = torch.zeros(size, dtype=torch.bool)
            runs[torch.as_tensor(places, dtype=torch.int64)] = True
            pictures = self._of_image(index)
            pieces = torch.split(runs, [rows * columns for rows, columns in pictures])
            run.append([piece.view(grid) for piece, grid in zip(pieces, pictures, strict=True)])
        return run

    def _rows_of(self, ran: Sequence[Sequence[int]]) -> list[int]:
        """Return the rows of each picture that the tower runs on; empty if it runs on all rows of all pictures.

        In a batch, every picture counts as the one with the most rows.
        """
        rows = list[int]()
        if not any(ran):
            return rows
        for index, of_image in enumerate(ran):
            longest = of_image
            if not self.tower.joined:
                longest = [max(itertools.chain(*ran))] * len(of_image)
            rows += longest or [tall * wide * self.tower.unit for tall, wide in self._of_image(index)]
        return rows

    def _of_image(self, index: int) -> list[Grid]:
        """Return the grid of tokens of each picture of an image or video, before pooling.

        Raises:
            SettingError: If the grids are needed and missing, or the counts contradict each other.
        """
        if self.grids and self.family.runs_grids:
            return [*self.grids[index]]
        if self.tower.windowed:
            raise SettingError(
                f"The cost of {self.family.title}'s tower depends on the windows of each picture. Pass the rows and "
                "columns of its tokens as grids=[[(height // 28, width // 28)], …], one entry per frame of each image."
            )
        size, count = self.prompt.sizes[index], self.media[index].tower_images
        if self.prompt.pictures:
            count = self.prompt.pictures[index]
        elif not size:
            return []
        if count is None:
            each = self.family.fixed_count(self.config)
            model = self.family.title if each is None else f"{self.family.title}, with {each} a picture,"
            raise SettingError(
                f"{size} vision tokens do not tell how many pictures the tower encodes: in {model} no "
                "number makes so many, or several do. Pass tower_images=…: for an image the number of its tiles and "
                "the base view, or 1; for a video the number of its frames. Family.pictures reads it from the inputs."
            )
        if self.tower.grid is not None:
            return [self.tower.grid] * count
        if count and size % count and self.tower.joined:  # of different sizes; their number does not matter there
            count = 1
        if count < 1 or size % count:
            raise SettingError(
                f"{size} vision tokens do not divide into {count} temporal patches. Check vision_tokens and "
                "tower_images."
            )
        return [(1, size // count)] * count


def _rows_left(stage: ThinStage, rows: int) -> int:
    """Return how many of a picture's rows a stage keeps."""
    left = stage.left(Arriving.all_of(rows))
    assert left is not None  # a ThinStage always has a fixed count
    return left
