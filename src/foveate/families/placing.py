"""Placing: write an image's remaining rows to its first places, then zeros, so the placeholders do not change."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.cut import Cut
from foveate.errors import UnsupportedError


def stays_whole(cut: Cut | None) -> bool:
    """True if a cut leaves an image's tokens unchanged."""
    return cut is None or cut.stays_whole


def rows_left(features: Tensor, cut: Cut | None) -> Tensor:
    """The rows that a cut leaves of an image's tokens, in the dtype of its features."""
    if cut is None:
        return features
    return cut.rows_left(features).to(features.dtype)


def first_rows(rows: Tensor, length: int) -> Tensor:
    """Pad rows, (rows, width), with zero rows to (length, width)."""
    # `pad` starts from the last dimension: nothing left and right, nothing above, zeros below.
    return pad(rows, (0, 0, 0, length - len(rows)))


def place_rows(features: Tensor, cut: Cut | None) -> Tensor:
    """An image's features with the rows of a cut in the first places, then zeros, (tokens, width)."""
    if stays_whole(cut):
        return features
    return first_rows(rows_left(features, cut), len(features))


def replace_images(output: Any, cells: Sequence[Cut | None]) -> list[Cut | None]:
    """Replace the tokens of images by the features of smaller images, with zeros after them.

    Args:
        output: The result of a `get_*_features` call: features of each smaller image, (cells, width), or of the usual
            one if there is no cut. They become (tokens, width), and so do deepstack's.
        cells: The cell that each of an image's tokens goes into (see `foveate.core.grid.into_cells`). None: it is
            unchanged.

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
    """The pieces in which a `get_*_features` call returns features, (…, tokens, width) each."""
    name = _name_of(output)
    if name is not None:
        return list(getattr(output, name, output))
    _, pieces = output.deepstack_features[0]  # nothing is embedded, all features are added between layers (Granite 4)
    return list(pieces)


def _name_of(output: Any) -> str | None:
    """The attribute with the features for the decoder. None if there are only features that are added later."""
    if getattr(output, "pooler_output", output) is not None:
        return "pooler_output"
    if getattr(output, "last_hidden_state", None) is not None:
        return "last_hidden_state"
    if getattr(output, "deepstack_features", None):
        return None
    return "pooler_output"


def lengths_of(pieces: Sequence[Tensor]) -> list[int]:
    """Number of tokens in each piece."""
    return [piece.shape[:-1].numel() for piece in pieces]


def images_of(output: Any, lengths: Callable[[int, Sequence[int]], Sequence[int]] | None) -> list[Tensor]:
    """The features of each image, (tokens, width), from the result of a `get_*_features` call.

    Args:
        output: The result: a tensor or a sequence of pieces.
        lengths: Returns the number of tokens in each image from the total and that of each piece. None if a piece is an
            image.
    """
    pieces = pieces_of(output)
    if lengths is None:
        return pieces
    # Pieces are tiles, and an image has several of them: concatenate all tokens and split them by image.
    together = torch.cat([piece.flatten(0, -2) for piece in pieces])
    of_images = lengths(len(together), lengths_of(pieces))
    return list(torch.split(together, list(of_images)))


def put_images(output: Any, images: Sequence[Tensor]) -> None:
    """Write the features of each image back, in the form in which they came."""
    name, reshaped = _name_of(output), list[Tensor]()
    if name is None:
        return
    pieces = getattr(output, name)
    if isinstance(pieces, Tensor):
        setattr(output, name, torch.cat(list(images)).view_as(pieces))
        return
    if len(pieces) == len(images):
        reshaped = list(images)
    else:
        parts = torch.split(torch.cat(list(images)), lengths_of(pieces))
        reshaped = [part.view_as(piece) for part, piece in zip(parts, pieces, strict=True)]
    setattr(output, name, reshaped)


def move_additions(pieces: Any, lengths: Sequence[int], cuts: Sequence[Cut | None]) -> Any:
    """Reorder the features added to vision tokens at a layer: each row gets those of the token that it stands for.

    Features are not merged.

    Args:
        pieces: A tensor or a sequence of tensors, (tokens, width); with the layer's number, if the model gives it.
        lengths: Number of tokens in each image.
        cuts: The cut of each image.

    Raises:
        UnsupportedError: If the features are given with a layer's number, and a cut merges.
    """
    if isinstance(pieces, tuple) and isinstance(pieces[0], int):  # (layer's number, features)
        if any(cut is not None and int((cut.parent >= 0).sum()) > len(cut.source) for cut in cuts):
            raise UnsupportedError(
                "This model does not embed a picture, but adds its features before several layers, so tokens cannot "
                "be merged after its projector. Use a method that does not merge."
            )
        return pieces[0], move_additions(pieces[1], lengths, cuts)
    is_by_image = not isinstance(pieces, Tensor) and [len(piece) for piece in pieces] == lengths
    images = list(pieces)
    if not is_by_image:
        together = pieces if isinstance(pieces, Tensor) else torch.cat(images)
        images = list(torch.split(together, list(lengths)))
    for index, cut in enumerate(cuts):
        if cut is not None and not cut.stays_whole:
            source = cut.source.clamp(min=0).to(images[index].device)  # rows without a source get the first token's
            images[index] = first_rows(images[index][source], lengths[index])
    if is_by_image:
        return type(pieces)(images)
    moved = torch.cat(images)
    if isinstance(pieces, Tensor):
        return moved
    return type(pieces)(torch.split(moved, [len(piece) for piece in pieces]))
