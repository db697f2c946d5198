"""Running a tower so that a method sees its tokens on the way out: what families with like towers share."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.core.attention import attention_rows, received_attention
from foveate.core.cut import Cut
from foveate.core.grid import Grid, closing_rows, grids_of
from foveate.core.host import send
from foveate.core.merge import average
from foveate.core.tower import TowerView
from foveate.errors import UnsupportedError

__all__ = [
    "Reducer",
    "TowerReader",
    "cells_cut",
    "encoder_layers",
    "feature_layers",
    "first_rows",
    "images_of",
    "place_rows",
    "put_images",
    "reduce_apart",
    "replaced",
    "rows_left",
    "scoring_layers",
    "smaller",
    "stays_whole",
]


class Reducer(Protocol):
    """What the engine hands a family to reduce a tower's tokens with.

    Attributes:
        early: Whether `merge_early` wants the first layer's tokens.
    """

    early: bool

    def lengths(self, total: int) -> Sequence[int]:
        """Vision tokens of each image of a call that makes `total`, as the prompt tells; of one, if none was seen."""
        ...

    def merge_early(self, images: Sequence[Tensor], grid: Grid) -> list[Cut | None]:
        """Which patches of each image become one after the first layer, (patches, width) each; with the new rows.

        All images of a call at once, as the host may have to wait for the device; so with `reduce`.
        """
        ...

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        """What becomes of each image's tokens, of which the host knows how many are left; None: nothing."""
        ...

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become (see `foveate.methods.stages.PixelStage`)."""
        ...


class TowerReader:
    """Attention scores and keys of one image, from queries and keys tapped in the tower.

    Args:
        cls: Whether the first token is a CLS.
        tapped: For each layer asked for, queries and keys of the image, (heads, tokens, head size), and the scaling.
        merges: For each of them, what its patches were merged into behind it; scores and keys are means then.
    """

    def __init__(
        self, cls: bool, tapped: Sequence[tuple[Tensor, Tensor, float]], merges: Sequence[Cut | None] | None = None
    ) -> None:
        self._cls = cls
        self._tapped = tapped
        self._merges = merges or [None] * len(tapped)

    def scores(self, layer: int) -> Tensor:
        """(patches,) float32: with a CLS the attention it pays, summed over heads; else what a patch receives."""
        at = min(layer, len(self._tapped) - 1)
        queries, keys, scaling = self._tapped[at]
        if self._cls:
            (row,) = attention_rows(queries[:, :1], keys, scaling)
            scores = row[:, 0, 1:].sum(dim=0)
        else:
            scores = received_attention(queries, keys, scaling)
        merge = self._merges[at]
        return scores if merge is None else average(scores[:, None], merge)[:, 0]

    def keys(self, layer: int) -> Tensor:
        """(patches, head size) float32, mean over heads; a CLS is left out."""
        at = min(layer, len(self._tapped) - 1)
        keys = self._tapped[at][1][:, int(self._cls) :].float().mean(dim=0)
        merge = self._merges[at]
        return keys if merge is None else average(keys, merge)


def feature_layers(config: Any, depth: int) -> list[int]:
    """Which of the tower's `depth` layers the projector reads the output of: −2 of 24 is 22; by default the last.

    Raises:
        UnsupportedError: If it reads what goes into the first.
    """
    given = getattr(config, "vision_feature_layer", -1)
    named = [given] if isinstance(given, int) else list(given)
    chosen = [(depth + 1 + one if one < 0 else one) - 1 for one in named]
    if min(chosen) < 0:
        raise UnsupportedError(f"This model's projector reads the tower's input ({given}): nothing is reduced there.")
    return chosen


def scoring_layers(chosen: Sequence[int], depth: int) -> list[int]:
    """The layers whose attention and keys score: the last the projector reads, and the one after it if there is one."""
    last = max(chosen)
    return [last, min(last + 1, depth - 1)]


def stays_whole(cut: Cut | None) -> bool:
    """Whether a cut leaves an image's tokens as they are."""
    return cut is None or cut.stays_whole


def cells_cut(rows: Tensor, cells: Cut) -> Cut:
    """The cut that puts the features of a smaller picture in the place of an image's tokens, as `cells` says."""
    return cells.to(rows.device).with_rows(rows)


def images_of(output: Any, lengths: Callable[[int], Sequence[int]] | None) -> list[Tensor]:
    """The features of each image, (tokens, width), in what a `get_*_features` call answered.

    Args:
        output: Its `pooler_output` is a tensor or a sequence of pieces.
        lengths: Tells tokens of each image from those of all; None where a piece is an image.
    """
    pieces = list(output.pooler_output)
    if lengths is None:
        return pieces
    together = torch.cat([piece.flatten(0, -2) for piece in pieces])
    return list(torch.split(together, list(lengths(len(together)))))


def put_images(output: Any, images: Sequence[Tensor]) -> None:
    """Put the features of each image back, in the form all came in."""
    whole = output.pooler_output
    if isinstance(whole, Tensor):
        output.pooler_output = torch.cat(list(images)).view_as(whole)
    elif len(whole) == len(images):
        output.pooler_output = list(images)
    else:
        output.pooler_output = list(torch.split(torch.cat(list(images)), [len(piece) for piece in whole]))


def place_rows(features: Tensor, cut: Any) -> Tensor:
    """An image's features with the rows of a cut in its first places and zeros after them, (tokens, width)."""
    return first_rows(rows_left(features, cut), len(features))


def first_rows(rows: Tensor, length: int) -> Tensor:
    """Rows with zeros after them, `length` in all."""
    whole = rows.new_zeros(length, *rows.shape[1:])
    whole[: len(rows)] = rows
    return whole


def rows_left(features: Tensor, cut: Any) -> Tensor:
    """The rows a cut leaves of an image's tokens."""
    if cut is None or cut.stays_whole:
        return features
    rows: Tensor = features[cut.source] if cut.rows is None else cut.rows
    return rows.to(features.dtype)


def reduce_apart(
    images: Sequence[Tensor],
    boxes: Sequence[Tensor | None],
    reducer: Reducer,
    stats: Sequence[Callable[[int], Tensor]] | None = None,
    grids: Sequence[tuple[Grid, ...]] | None = None,
) -> list[Any]:
    """Reduce each image's tokens behind the projector, its newlines apart: the one that ends an image stays.

    Args:
        images: (tokens, width) each.
        boxes: Where they look, (tokens, 4) each, on the host; NaN for a newline. None where `grids` holds all tokens.
        reducer: What reduces.
        stats: For each image what gives (tokens that are no newline, 1 + key size) float32, scores and keys, for a
            layer as `TowerView.attention` counts; None if nobody will ask.
        grids: The grids each image's tokens stand in, if these are known without the boxes.
    """
    nothing: list[None] = [None] * len(images)
    parts = [_parts(*of) for of in zip(images, boxes, grids or nothing, strict=True)]
    known = zip(images, parts, boxes, stats or nothing, grids or nothing, strict=True)
    cuts = reducer.reduce(itertools.starmap(_without_newlines, known))
    return [_together(*of) for of in zip(images, parts, cuts, strict=True)]


def _parts(features: Tensor, boxes: Tensor | None, grids: tuple[Grid, ...] | None) -> tuple[Tensor, Tensor]:
    """Which of an image's tokens are no newlines, and which newline stays: ordinals."""
    if boxes is None and grids is not None:
        every = torch.arange(len(features), device=features.device)
        return every, every[:0]
    if boxes is None:
        raise UnsupportedError("Where this image's tokens look is not known, so its newlines cannot be told apart.")
    newline = boxes.isnan().any(dim=-1)
    tokens, newlines = (send((newline == flag).nonzero()[:, 0], features.device) for flag in (False, True))
    return tokens, newlines[: closing_rows(len(newlines))]


def _without_newlines(
    features: Tensor,
    parts: tuple[Tensor, Tensor],
    boxes: Tensor | None,
    stats: Callable[[int], Tensor] | None,
    grids: tuple[Grid, ...] | None,
) -> TowerView:
    """The view of an image's tokens but its newlines: made late, where it needs a copy of them."""
    tokens, stays = parts
    plain = len(tokens) == len(features)
    if grids is None:
        assert boxes is not None
        grids = grids_of(boxes)
    return TowerView(
        features if plain else features[tokens],
        grid=grids[0] if len(grids) == 1 and plain else None,
        cls=None,
        scores_of=lambda layer: _known(stats)(layer)[:, 0],
        keys_of=lambda layer: _known(stats)(layer)[:, 1:],
        entered=len(features),
        reserved=len(stays),
        grids=grids,
    )


def _together(features: Tensor, parts: tuple[Tensor, Tensor], cut: Any) -> Any:
    """The cut of all of an image's tokens, from that of those that are no newlines; the newline that stays is last."""
    if cut is None:
        return None
    tokens, stays = parts
    if cut.stays_whole:
        return Cut.stay(len(features), _spread(cut.notes, tokens, len(features)))
    source = torch.where(cut.source < 0, cut.source, tokens[cut.source.clamp(min=0)])
    rows = features[source] if cut.rows is None else cut.rows
    parent = torch.full((len(features),), -1, device=features.device)
    parent[tokens] = cut.parent
    parent[stays] = len(source)
    places = torch.arange(len(source), device=features.device)
    return Cut.merge(
        torch.cat((source, stays)),
        torch.cat((rows, features[stays].to(rows.dtype))),
        parent,
        _spread(cut.notes, places, len(source) + len(stays)),
    )


def _spread(notes: Mapping[str, Tensor], places: Tensor, count: int) -> dict[str, Tensor]:
    """Notes of some rows as notes of all; true, or one, for a newline."""
    spread = {}
    for name, note in notes.items():
        spread[name] = note.new_ones(count)
        spread[name][places] = note
    return spread


def _known(stats: Callable[[int], Tensor] | None) -> Callable[[int], Tensor]:
    if stats is None:
        raise UnsupportedError(
            "Attention and keys of the tower are not read for methods that work behind the projector."
        )
    return stats


def smaller(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures, (count, channels, rows, columns), brought down to so many pixels: bilinear, and every pixel counts."""
    resized = nn.functional.interpolate(pictures.float(), (height, width), mode="bilinear", antialias=True)
    small: Tensor = resized.to(pictures.dtype)
    return small


def encoder_layers(tower: nn.Module) -> nn.ModuleList:
    """The tower's layers, wherever its class keeps its encoder.

    Raises:
        UnsupportedError: If it has none of the usual kind.
    """
    for name, module in tower.named_modules():
        if name.split(".")[-2:] == ["encoder", "layers"] and isinstance(module, nn.ModuleList):
            return module
    raise UnsupportedError(
        f"{type(tower).__name__} has no encoder.layers, so tokens cannot be reduced in this tower. "
        "Use a method that drops between layers, or AveragePool."
    )


@contextmanager
def replaced(module: nn.Module, name: str, call: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Put `call` in the place of a module's method, which is handed out."""
    original, own = getattr(module, name), name in module.__dict__
    setattr(module, name, call)
    try:
        yield original
    finally:
        if own:
            setattr(module, name, original)
        else:
            delattr(module, name)
