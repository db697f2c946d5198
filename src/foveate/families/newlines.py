"""Newlines: reduce an image's tokens after the projector without ranking its newlines."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.cut import Cut, look_up
from foveate.core.grid import closing_rows
from foveate.core.signals import TowerSignal
from foveate.core.tensors import send
from foveate.core.views import TowerView
from foveate.errors import UnsupportedError
from foveate.families.tower import ImageReducer
from foveate.families.vision import PictureLayout

Stats = Callable[[TowerSignal], Sequence[Tensor] | Tensor]
"""Returns the tower's values of each image's tokens, newlines excluded, (tokens, numbers) float32; see
`TowerView.read`.
"""


def reduce_apart(
    images: Sequence[Tensor],
    pictures: Sequence[PictureLayout],
    reducer: ImageReducer,
    stats: Stats | None = None,
    more: Callable[[int], Mapping[str, Any]] = lambda index: {},
) -> list[Cut | None]:
    """Reduce each image's tokens after the projector. The newline that ends an image stays; others are dropped.

    Args:
        images: (tokens, width) each.
        pictures: The grids of each image's tokens, and the newlines beside these.
        reducer: Reduces the tokens.
        stats: Attention and keys in the tower. None if no method reads them.
        more: Called with an image's index. Returns its other attributes of `TowerView` by name, newlines excluded.
    """
    parts = [_Image(*image) for image in zip(images, pictures, strict=True)]
    views = (image.view(partial(read_stats, stats, index), more(index)) for index, image in enumerate(parts))
    cuts = reducer.reduce(views)
    return [image.with_newline(cut) for image, cut in zip(parts, cuts, strict=True)]


class _Image:
    """An image's tokens and newlines. Example: a view of 2 x 2 tokens, and the newline that ends it.

        0 1 2 3 ↵        tokens 0, 1, 2, 3        closing 4

    Args:
        features: (tokens, width), newlines included.
        picture: The grids of the tokens, and the newlines beside these.

    Attributes:
        tokens: Indices of the tokens that are not newlines. None: all.
        closing: Index of the newline that stays, after all others: one or none. None if there are no newlines.
    """

    tokens: Tensor | None = None
    closing: Tensor | None = None

    def __init__(self, features: Tensor, picture: PictureLayout) -> None:
        if picture.grids is None:
            raise UnsupportedError(
                "The places of this image's tokens are not known, so its newline tokens cannot be found. "
                "Use a method that drops between layers."
            )
        self.features, self.grids = features, picture.grids
        if picture.beside:
            self.tokens = send(picture.in_grids.nonzero()[:, 0], features.device)
            newlines = send(torch.tensor(picture.beside), features.device)
            self.closing = newlines[: closing_rows(len(newlines))]

    def view(self, read: Callable[[TowerSignal], Tensor], more: Mapping[str, Any]) -> TowerView:
        """The tokens without newlines. Made when the reducer asks for it, because leaving out newlines makes a copy."""
        features = self.features if self.tokens is None else self.features[self.tokens]
        is_grid = self.tokens is None and len(self.grids) == 1
        return TowerView(
            features,
            grid=self.grids[0] if is_grid else None,
            read=read,
            entered=len(self.features),  # newlines included
            reserved=0 if self.closing is None else len(self.closing),
            grids=self.grids,
            **{"cls": None, **more},
        )

    def with_newline(self, cut: Cut | None) -> Cut | None:
        """Turn a cut of the tokens without newlines into one of all tokens. The newline that stays is the last row."""
        if cut is None or self.tokens is None or self.closing is None:
            return cut
        arriving, device = len(self.features), self.features.device
        if cut.stays_whole:
            return Cut.stay(arriving, _spread(cut.notes, self.tokens, arriving))
        source = look_up(cut.source, self.tokens)  # from indices among these tokens to indices among all
        rows = self.features[source] if cut.rows is None else cut.rows
        parent = torch.full((arriving,), -1, device=device)
        parent[self.tokens] = cut.parent
        parent[self.closing] = len(source)  # the row after all others
        places = torch.arange(len(source), device=device)
        count = len(source) + len(self.closing)
        newline = self.features[self.closing].to(rows.dtype)
        return Cut.merge(
            torch.cat((source, self.closing)),
            torch.cat((rows, newline)),
            parent,
            _spread(cut.notes, places, count),
        )


def read_stats(stats: Stats | None, index: int, signal: TowerSignal) -> Tensor:
    """The tower's values of an image's tokens, newlines excluded.

    Raises:
        UnsupportedError: If the tower is not read.
    """
    if stats is None:
        raise UnsupportedError(
            "A method that works after the projector cannot read the tower's attention or keys. "
            "Use a method that works in the tower, or one that drops between layers."
        )
    return stats(signal)[index]


def _spread(notes: Mapping[str, Tensor], places: Tensor, count: int) -> dict[str, Tensor]:
    """Turn notes of some rows into notes of all. A newline gets True, or 1, and zeros if a note is a vector."""
    spread = {}
    for name, note in notes.items():
        spread[name] = note.new_ones(count) if note.dim() == 1 else note.new_zeros(count, *note.shape[1:])
        spread[name][places] = note
    return spread
