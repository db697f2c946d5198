"""M-RoPE inside vLLM: kept rows keep their places on the image's grid, and text after the image its positions.

vLLM asks for a prompt's positions before its images are encoded. So all columns of an image or video first get the
position at which its grid begins, and are marked. Each row carries its place on the grid in six extra channels. The
place is added to that position when the row arrives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.core.grid import Grid

__all__ = ["CHANNELS", "Span", "arrived", "moved", "next_position", "places_of", "restored", "shortened", "with_places"]

CHANNELS = 6
"""Number of extra channels of a row: its time, grid row and grid column, two digits each."""
WAITS = -1
"""Marks a column whose row has not arrived yet; stored in place of its grid row."""
BASE = 128
"""Base of these digits. bfloat16 has 8 significant bits: it holds 0 to 127 exactly, but not every number above 256."""


class Span(NamedTuple):
    """The columns of an image in a prompt.

    Attributes:
        offset: The first of them, in the prompt with reduced images.
        kept: How many there are.
        whole: How many there would be if nothing was dropped.
    """

    offset: int
    kept: int
    whole: int


# -- a row's place travels with it -----------------------------------------------------------------------------


def with_places(rows: Tensor, source: Tensor, grid: Grid, step: float = 1.0) -> Tensor:
    """Append to rows their places on the grid of the image or video.

    Args:
        rows: (rows, width), any float dtype.
        source: The token that each row stands for, (rows,) int64, counted frame by frame and in raster order.
        grid: Rows and columns of a frame's tokens.
        step: Position difference from one frame to the next; the product is rounded down for each frame.

    Returns:
        (rows, width + 6), same dtype.
    """
    down, across = grid
    time = ((source // (down * across)).double() * step).long()
    place = torch.stack((time, source // across % down, source % across), dim=1)
    # For example column 300 becomes the digits 2 and 44: 2 · 128 + 44.
    digits = torch.stack((place // BASE, place % BASE), dim=2).flatten(1)
    return torch.cat((rows, digits.to(rows)), dim=1)


def places_of(channels: Tensor) -> Tensor:
    """Return time, grid row and grid column of each row: (rows, 6) channels -> (3, rows) int64."""
    digits = channels.long().reshape(-1, 3, 2)
    places: Tensor = digits[..., 0] * BASE + digits[..., 1]
    return places.T


# -- a prompt without its images' dropped tokens ---------------------------------------------------------------


def restored(tokens: Sequence[int], spans: Sequence[Span]) -> list[int]:
    """Return the prompt with whole images, for code that numbers whole images.

    Args:
        tokens: Ids of the prompt with reduced images.
        spans: Its images, ascending; each has at least one column.
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
    """Return where a column is in the whole prompt. It must not be an inner column of an image."""
    dropped = [span.whole - span.kept for span in spans if span.offset < offset]
    return offset + sum(dropped)


def shortened(positions: Tensor, spans: Sequence[Span]) -> Tensor:
    """Return the positions of the prompt with reduced images, from those of the whole prompt.

    Args:
        positions: (3, columns of the whole prompt), int64.
        spans: Its images, ascending.

    Returns:
        (3, columns). An image's columns have the position at which its grid begins on the first axis, and are marked as
        waiting on the others.
    """
    parts = []
    end = 0  # in the reduced prompt
    done = 0  # in the whole prompt
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
    """Return the positions of a prompt after rows of its images have arrived. Rows may arrive repeatedly.

    Args:
        positions: (3, columns) int64, from `shortened` or from this function.
        is_image: Which columns are an image's, (columns,) bool.
        channels: Channels of the arriving rows, all images concatenated: (rows, 6).
        computed: Columns already computed. The rows are those of the next image columns.

    Returns:
        (3, columns) int64.
    """
    # A stable sort of 0s and 1s moves the image columns still to be computed to the front, without a host sync. Of
    # image columns 2 3 6, with 3 columns computed and two rows arriving, these are 3 6.
    waits = is_image.clone()
    waits[:computed] = False
    order = torch.sort(waits.logical_not().to(torch.uint8), stable=True).indices
    columns = order[: len(channels)]
    begin, now = positions[:1, columns], positions[:, columns]
    changed = positions.clone()
    # Columns whose rows arrived before have their places already, not the position at which the grid begins.
    changed[:, columns] = torch.where(now[1:2] == WAITS, begin + places_of(channels).to(positions), now)
    return changed


def next_position(positions: Tensor) -> int:
    """Return the position of the first token after a prompt that ends in text."""
    return int(positions[:, -1].max()) + 1
