"""Running a tower so that a method sees its tokens on the way out: what families with like towers share."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foveate.core.attention import attention_rows, received_attention
from foveate.core.grid import Grid, closing_rows, grids_of
from foveate.core.merge import Merge, average
from foveate.core.tower import TowerView
from foveate.errors import UnsupportedError
from foveate.families._tap import tapped

__all__ = [
    "Reducer",
    "TowerReader",
    "encode_before_projector",
    "encoder_layers",
    "feature_layers",
    "first_rows",
    "images_of",
    "place_rows",
    "put_images",
    "reduce_apart",
    "replaced",
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

    def merge_early(self, rows: Tensor, grid: tuple[int, int]) -> Merge | None:
        """Which patches of one image become one after the first layer, (patches, width)."""
        ...

    def reduce(self, view: TowerView) -> Any:
        """What becomes of one image's tokens: a cut, or None."""
        ...

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become (see `foveate.methods.base.Method.coarsen`)."""
        ...

    def replace(self, rows: Tensor, merge: Merge) -> Any:
        """The cut that puts these rows in the place of an image's tokens, which go into them as `merge` says."""
        ...


class TowerReader:
    """Attention scores and keys of one image, from queries and keys tapped in the tower.

    Args:
        cls: Whether the first token is a CLS.
        tapped: For each layer asked for, queries and keys of the image, (heads, tokens, head size), and the scaling.
    """

    def __init__(self, cls: bool, tapped: Sequence[tuple[Tensor, Tensor, float]]) -> None:
        self._cls = cls
        self._tapped = tapped

    def scores(self, layer: int) -> Tensor:
        """(patches,) float32: with a CLS the attention it pays, summed over heads; else what a patch receives."""
        queries, keys, scaling = self._tapped[min(layer, len(self._tapped) - 1)]
        if not self._cls:
            return received_attention(queries, keys, scaling)
        (row,) = attention_rows(queries[:, :1], keys, scaling)
        return row[:, 0, 1:].sum(dim=0)

    def keys(self, layer: int) -> Tensor:
        """(patches, head size) float32, mean over heads; a CLS is left out."""
        keys = self._tapped[min(layer, len(self._tapped) - 1)][1]
        return keys[:, int(self._cls) :].float().mean(dim=0)


def encode_before_projector(
    run: Callable[[], Any], tower: nn.Module, projector: nn.Module, chosen: Sequence[int], cls: bool, reducer: Reducer
) -> tuple[Any, list[Any]]:
    """Run a LLaVA's `get_image_features` with every image's tokens reduced on their way to the projector.

    The projector works on the rows that are left; behind it every image has as many rows as before, its own first
    and zeros after them, so that the placeholders stay whole.

    Args:
        run: Calls the original.
        tower: CLIP or SigLIP: `encoder.layers`, each with a `self_attn`.
        projector: Gets (images, patches, width).
        chosen: Indices of the layers whose output the projector gets; the last of them scores.
        cls: Whether the tower has a CLS, which the original leaves out.
        reducer: What reduces.

    Returns:
        What the original returns, and a cut (or None) an image.
    """
    layers = encoder_layers(tower)
    wanted = scoring_layers(chosen, len(layers))
    seen: dict[int, tuple[Tensor, Tensor, float]] = {}
    states: dict[int, Tensor] = {}
    early: list[Merge | None] = []
    patches: list[int] = []
    cuts: list[Any] = []

    def note_first(module: Any, args: Any, output: Tensor) -> Tensor | None:
        patches.append(output.shape[1] - int(cls))
        if not reducer.early:
            early.extend([None] * len(output))
            return None
        side = int(patches[0] ** 0.5)
        merge = reducer.merge_early(output[0, int(cls) :], (side, patches[0] // side))
        early.append(merge)
        if merge is None:
            return None
        return torch.cat((output[:, : int(cls)], average(output[0, int(cls) :], merge)[None]), dim=1)

    def project(features: Tensor) -> Tensor:
        side = int(patches[0] ** 0.5)
        for index, image in enumerate(features):
            read = TowerReader(cls, [(q[index], k[index], s) for q, k, s in (seen[at] for at in wanted)])
            merge = early[index]
            grid = (side, patches[0] // side) if merge is None else None
            state = torch.cat([states[at][index, :1] for at in chosen], dim=-1) if cls else None
            cuts.append(reducer.reduce(TowerView(image, grid, state, read.scores, read.keys, merge)))
        if all(stays_whole(image, cut) for image, cut in zip(features, cuts, strict=True)):
            same: Tensor = original(features)
            return same
        rows = [_rows(image, cut) for image, cut in zip(features, cuts, strict=True)]
        if len({len(row) for row in rows}) == 1:
            projected: Sequence[Tensor] = list(original(torch.stack(rows)))
        else:
            projected = [original(row[None])[0] for row in rows]
        whole = projected[0].new_zeros(len(rows), patches[0], projected[0].shape[-1])
        for place, row in zip(whole, projected, strict=True):
            place[: len(row)] = row
        return whole  # a fresh tensor: views of it are one image's features each

    with ExitStack() as stack:
        for at in dict.fromkeys(wanted):
            attention: Any = layers[at].self_attn
            stack.enter_context(tapped(attention, lambda q, k, s, at=at: seen.update({at: (q, k, s)})))  # type: ignore[misc]
        stack.enter_context(_hook(layers[0], note_first))
        for at in dict.fromkeys(chosen):
            note = functools.partial(_note, states, at)
            stack.enter_context(_hook(layers[at], note))
        original = stack.enter_context(replaced(projector, "forward", project))
        return run(), cuts


def _note(states: dict[int, Tensor], at: int, module: nn.Module, args: Any, output: Tensor) -> None:
    states[at] = output


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


def stays_whole(features: Tensor, cut: Any) -> bool:
    """Whether a cut leaves an image's tokens as they are."""
    return cut is None or (cut.rows is None and len(cut.kept) == len(features))


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
    return first_rows(_rows(features, cut), len(features))


def first_rows(rows: Tensor, length: int) -> Tensor:
    """Rows with zeros after them, `length` in all."""
    whole = rows.new_zeros(length, *rows.shape[1:])
    whole[: len(rows)] = rows
    return whole


def _rows(features: Tensor, cut: Any) -> Tensor:
    """The rows a cut leaves of an image's tokens."""
    if cut is None:
        return features
    rows: Tensor = features[cut.kept] if cut.rows is None else cut.rows
    return rows.to(features.dtype)


def reduce_apart(
    features: Tensor,
    boxes: Tensor | None,
    reducer: Reducer,
    stats: Callable[[int], Tensor] | None = None,
    grids: tuple[Grid, ...] | None = None,
) -> Any:
    """Reduce one image's tokens behind the projector, its newlines apart: the one that ends the image stays.

    Args:
        features: (tokens, width).
        boxes: Where they look, (tokens, 4); NaN for a newline.
        reducer: What reduces.
        stats: Gives (tokens that are no newline, 1 + key size) float32, scores and keys, for a layer as
            `TowerView.attention` counts; None if nobody will ask.
        grids: The grids they stand in, if these are known without the boxes.
    """
    if boxes is None:
        raise UnsupportedError("Where this image's tokens look is not known, so its newlines cannot be told apart.")
    newline = boxes.isnan().any(dim=-1).to(features.device)
    tokens, newlines = (~newline).nonzero()[:, 0], newline.nonzero()[:, 0]
    stays = newlines[: closing_rows(len(newlines))]
    grids = grids or grids_of(boxes)
    view = TowerView(
        features[tokens],
        grid=grids[0] if len(grids) == 1 and not len(newlines) else None,
        cls=None,
        scores_of=lambda layer: _known(stats)(layer)[:, 0],
        keys_of=lambda layer: _known(stats)(layer)[:, 1:],
        entered=len(features),
        reserved=len(stays),
        grids=grids,
    )
    cut = reducer.reduce(view)
    if cut is None:
        return None
    if stays_whole(features[tokens], cut):
        every = torch.arange(len(features), device=features.device)
        return dataclasses.replace(cut, kept=every, sizes=(len(every),), notes=_spread(cut.notes, tokens, len(every)))
    kept = torch.where(cut.kept < 0, cut.kept, tokens[cut.kept.clamp(min=0)])
    rows = features[kept] if cut.rows is None else cut.rows
    assign = torch.full((len(features),), -1, device=features.device)
    if cut.assign is None:
        assign[kept] = torch.arange(len(kept), device=features.device)
    else:
        assign[tokens] = cut.assign
    assign[stays] = len(kept)
    count = len(kept) + len(stays)
    places = torch.arange(len(kept), device=features.device)
    return dataclasses.replace(
        cut,
        kept=torch.cat((kept, stays)),
        sizes=(count,),
        rows=torch.cat((rows, features[stays].to(rows.dtype))),
        assign=assign,
        notes=_spread(cut.notes, places, count),
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
def _hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    # Before those by which transformers captures hidden states, which it installs when it first needs them.
    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


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
