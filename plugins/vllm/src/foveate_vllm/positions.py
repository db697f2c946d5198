"""M-RoPE inside vLLM: rows of a cut keep the places on their image's grid, and text behind it its positions.

vLLM asks for a prompt's positions before its images are encoded. So the columns of an image or film first have the
position at which its grid begins, and are marked; each row brings its place on the grid in six more channels, which are
added to that position when the row arrives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.core.grid import Grid

__all__ = ["CHANNELS", "Span", "arrived", "moved", "next_position", "places_of", "restored", "shortened", "with_places"]

CHANNELS = 6
"""How many more channels a row has: its time, its grid row and its grid column, each as two digits."""
WAITS = -1
"""In the place of a column's grid row, as long as its row has not arrived."""
BASE = 128
"""Of these digits. bfloat16 has 8 significant bits: it holds 0 to 127, not each number above 256."""


class Span(NamedTuple):
    """The columns of an image in a prompt.

    Attributes:
        offset: The first of them, in the prompt whose images are cut.
        kept: How many there are.
        whole: How many there would be without a cut.
    """

    offset: int
    kept: int
    whole: int


# -- a row's place travels with it -----------------------------------------------------------------------------


def with_places(rows: Tensor, source: Tensor, grid: Grid, step: float = 1.0) -> Tensor:
    """Rows with their places on the grid of the image or film behind them.

    Args:
        rows: (rows, width), any float dtype.
        source: The token that each stands for, (rows,) int64, counted through the grid of each frame row by row.
        grid: Rows and columns of a frame's tokens.
        step: Positions from one frame to the next, rounded down for each frame.

    Returns:
        (rows, width + 6), same dtype.
    """
    down, across = grid
    time = ((source // (down * across)).double() * step).long()
    place = torch.stack((time, source // across % down, source % across), dim=1)
    digits = torch.stack((place // BASE, place % BASE), dim=2).flatten(1)
    return torch.cat((rows, digits.to(rows)), dim=1)


def places_of(channels: Tensor) -> Tensor:
    """Time, grid row and grid column of each row: (rows, 6) channels -> (3, rows) int64."""
    digits = channels.long().reshape(-1, 3, 2)
    places: Tensor = digits[..., 0] * BASE + digits[..., 1]
    return places.T


# -- a prompt without its images' dropped tokens ---------------------------------------------------------------


def restored(tokens: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """The prompt as it would be without a cut, for those that number whole images.

    Args:
        tokens: Ids of the prompt whose images are cut.
        spans: Its images, ascending; each has one column or more.
    """
    whole: list[int] = []
    end = 0
    for span in spans:
        whole += tokens[end : span.offset]
        whole += [tokens[span.offset]] * span.whole
        end = span.offset + span.kept
    whole += tokens[end:]
    return whole


def moved(offset: int, spans: Sequence[Span]) -> int:
    """Where a column that is no inner one of an image stands in the whole prompt."""
    dropped = [span.whole - span.kept for span in spans if span.offset < offset]
    return offset + sum(dropped)


def shortened(positions: Tensor, spans: Sequence[Span]) -> Tensor:
    """Positions of the prompt whose images are cut, from those of the whole one.

    Args:
        positions: (3, columns of the whole prompt), int64.
        spans: Its images, ascending.

    Returns:
        (3, columns). An image's columns have the position at which its grid begins on the first axis, and wait.
    """
    parts = []
    end = 0  # in the prompt that is cut
    done = 0  # in the whole one
    for span in spans:
        begin = done + span.offset - end
        parts.append(positions[:, done:begin])
        waiting = positions[:, begin : begin + 1].repeat(1, span.kept)
        waiting[1:] = WAITS
        parts.append(waiting)
        end = span.offset + span.kept
        done = begin + span.whole
    parts.append(positions[:, done:])
    return torch.cat(parts, dim=1)


# -- rows that arrive ------------------------------------------------------------------------------------------


def arrived(positions: Tensor, is_image: Tensor, channels: Tensor, computed: int) -> Tensor:
    """Positions of a prompt after rows of its images have arrived; the same again if they arrive again.

    Args:
        positions: (3, columns) int64, as `shortened` or this has made them.
        is_image: Which columns are an image's, (columns,) bool.
        channels: Of the rows that arrive, all images behind one another: (rows, 6).
        computed: Columns that are done. The rows are those of the next image columns.

    Returns:
        (3, columns) int64.
    """
    # A stable sort of 0s and 1s brings the columns that wait to the front, without waiting for the device: of the
    # columns 2 3 6, if 3 are done and two rows arrive, 3 6.
    waits = is_image.clone()
    waits[:computed] = False
    order = torch.sort(waits.logical_not().to(torch.uint8), stable=True).indices
    columns = order[: len(channels)]
    begin, now = positions[:1, columns], positions[:, columns]
    changed = positions.clone()
    # Columns whose rows have arrived before have their places, and no longer the position at which the grid begins.
    changed[:, columns] = torch.where(now[1:2] == WAITS, begin + places_of(channels).to(positions), now)
    return changed


def next_position(positions: Tensor) -> int:
    """The position of the first token behind a prompt that ends in text."""
    return int(positions[:, -1].max()) + 1
