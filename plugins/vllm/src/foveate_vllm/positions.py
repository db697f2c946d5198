"""M-RoPE inside vLLM: rows of a cut keep the places on their image's grid, and text behind it its positions.

vLLM asks for a prompt's positions before its images are encoded. So the columns of an image first have the position at
which its grid begins, on all three axes; each row brings its place on the grid in four more channels, which are added
to that position when the row arrives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.core.grid import Grid

__all__ = ["CHANNELS", "Span", "arrived", "moved", "next_position", "places_of", "restored", "shortened", "with_places"]

CHANNELS = 4
"""How many more channels a row has: its grid row and its grid column, each as two digits."""
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


def with_places(rows: Tensor, source: Tensor, grid: Grid) -> Tensor:
    """Rows with their places on the image's grid behind them.

    Args:
        rows: (rows, width), any float dtype.
        source: The token that each stands for, (rows,) int64, counted through the grid row by row.
        grid: Rows and columns of the image's tokens.

    Returns:
        (rows, width + 4), same dtype.
    """
    _, across = grid
    place = torch.stack((source // across, source % across), dim=1)
    digits = torch.stack((place // BASE, place % BASE), dim=2).flatten(1)
    return torch.cat((rows, digits.to(rows)), dim=1)


def places_of(channels: Tensor) -> Tensor:
    """Grid row and grid column of each row: (rows, 4) channels -> (2, rows) int64."""
    digits = channels.long().reshape(-1, 2, 2)
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
        (3, columns). An image's columns have the position at which its grid begins, on all axes.
    """
    parts = []
    end = 0  # in the prompt that is cut
    done = 0  # in the whole one
    for span in spans:
        begin = done + span.offset - end
        parts.append(positions[:, done:begin])
        parts.append(positions[:1, begin : begin + 1].expand(3, span.kept))
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
        channels: Of the rows that arrive, all images behind one another: (rows, 4).
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
    # An image is one frame, so on the first axis all its columns always have the position at which its grid begins.
    begin = positions[:1, columns]
    changed = positions.clone()
    changed[1:, columns] = begin + places_of(channels).to(positions)
    return changed


def next_position(positions: Tensor) -> int:
    """The position of the first token behind a prompt that ends in text."""
    return int(positions[:, -1].max()) + 1
