"""Putting what is left of an image in its place: the rows first, zeros behind, so that the placeholders stay whole."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.cut import Cut
from foveate.errors import UnsupportedError


def stays_whole(cut: Cut | None) -> bool:
    """Whether a cut leaves an image's tokens as they are."""
    return cut is None or cut.stays_whole


def rows_left(features: Tensor, cut: Cut | None) -> Tensor:
    """The rows a cut leaves of an image's tokens, in the dtype of its features."""
    if cut is None:
        return features
    return cut.rows_left(features).to(features.dtype)


def first_rows(rows: Tensor, length: int) -> Tensor:
    """Rows, (rows, width), with zeros behind them: (length, width)."""
    # `pad` counts from the last dimension: nothing left and right, nothing above, zeros below.
    return pad(rows, (0, 0, 0, length - len(rows)))


def place_rows(features: Tensor, cut: Cut | None) -> Tensor:
    """An image's features with the rows of a cut in its first places and zeros behind, (tokens, width)."""
    if stays_whole(cut):
        return features
    return first_rows(rows_left(features, cut), len(features))


def replace_images(output: Any, cells: Sequence[Cut | None]) -> list[Cut | None]:
    """Put the features of smaller pictures in the place of images' tokens, zeros behind them.

    Args:
        output: What a `get_*_features` call answered: features of each picture, (cells, width); whole where there is no
            cut. They become (tokens, width), and so do deepstack's.
        cells: Which cell each of an image's tokens went into (see `foveate.core.grid.into_cells`); None: it is whole.

    Returns:
        The cuts, with the rows.
    """

    def lengthen(images: Any) -> list[Tensor]:
        pairs = zip(images, cells, strict=True)
        return [rows if cut is None else first_rows(rows, cut.arriving) for rows, cut in pairs]

    pieces, deepstack = output.pooler_output, getattr(output, "deepstack_features", None)
    output.pooler_output = lengthen(pieces)
    if isinstance(pieces, Tensor):
        output.pooler_output = torch.stack(output.pooler_output)
    if deepstack:
        output.deepstack_features = [lengthen(features) for features in deepstack]
    pairs = zip(pieces, cells, strict=True)
    return [None if cut is None else cut.to(rows.device).with_rows(rows) for rows, cut in pairs]


def pieces_of(output: Any) -> list[Tensor]:
    """The pieces in which a `get_*_features` call answers features, (…, tokens, width) each."""
    name = _name_of(output)
    if name is not None:
        return list(getattr(output, name, output))
    _, pieces = output.deepstack_features[0]  # nothing is embedded: all is added between layers (Granite 4)
    return list(pieces)


def _name_of(output: Any) -> str | None:
    """What an answer calls the features that go to the decoder; None where only what is added later is there."""
    if getattr(output, "pooler_output", output) is not None:
        return "pooler_output"
    if getattr(output, "last_hidden_state", None) is not None:
        return "last_hidden_state"
    if getattr(output, "deepstack_features", None):
        return None
    return "pooler_output"


def lengths_of(pieces: Sequence[Tensor]) -> list[int]:
    """Tokens of each piece."""
    return [piece.shape[:-1].numel() for piece in pieces]


def images_of(output: Any, lengths: Callable[[int, Sequence[int]], Sequence[int]] | None) -> list[Tensor]:
    """The features of each image, (tokens, width), in what a `get_*_features` call answered.

    Args:
        output: A tensor or a sequence of pieces.
        lengths: Tells tokens of each image from those of all and of each piece; None where a piece is an image.
    """
    pieces = pieces_of(output)
    if lengths is None:
        return pieces
    # Pieces are tiles, so an image is several of them: all tokens in one tensor, divided anew.
    together = torch.cat([piece.flatten(0, -2) for piece in pieces])
    of_images = lengths(len(together), lengths_of(pieces))
    return list(torch.split(together, list(of_images)))


def put_images(output: Any, images: Sequence[Tensor]) -> None:
    """Put the features of each image back, in the form all came in."""
    name, made = _name_of(output), list[Tensor]()
    if name is None:
        return
    pieces = getattr(output, name)
    if isinstance(pieces, Tensor):
        setattr(output, name, torch.cat(list(images)).view_as(pieces))
        return
    if len(pieces) == len(images):
        made = list(images)
    else:
        parts = torch.split(torch.cat(list(images)), lengths_of(pieces))
        made = [part.view_as(piece) for part, piece in zip(parts, pieces, strict=True)]
    setattr(output, name, made)


def move_additions(pieces: Any, lengths: Sequence[int], cuts: Sequence[Cut | None]) -> Any:
    """What is added to vision tokens at a layer, each row's where the row is now: that of the token that it stands for,
    since additions are not merged.

    Args:
        pieces: A tensor or a sequence of such, (tokens, width); beside the layer's number, where the model says it.
        lengths: Tokens of each image.
        cuts: Of each image.
    """
    if isinstance(pieces, tuple) and isinstance(pieces[0], int):  # the layer's number, and what is added
        if any(cut is not None and int((cut.parent >= 0).sum()) > len(cut.source) for cut in cuts):
            raise UnsupportedError(
                "This model embeds nothing of a picture, and adds its features before several layers, so tokens cannot "
                "be merged behind its projector. Use a method that keeps tokens as they are."
            )
        return pieces[0], move_additions(pieces[1], lengths, cuts)
    is_by_image = not isinstance(pieces, Tensor) and [len(piece) for piece in pieces] == lengths
    images = list(pieces)
    if not is_by_image:
        together = pieces if isinstance(pieces, Tensor) else torch.cat(images)
        images = list(torch.split(together, list(lengths)))
    for index, cut in enumerate(cuts):
        if cut is not None and not cut.stays_whole:
            source = cut.source.clamp(min=0).to(images[index].device)  # a row that stands for none gets the first's
            images[index] = first_rows(images[index][source], lengths[index])
    if is_by_image:
        return type(pieces)(images)
    moved = torch.cat(images)
    if isinstance(pieces, Tensor):
        return moved
    return type(pieces)(torch.split(moved, [len(piece) for piece in pieces]))
