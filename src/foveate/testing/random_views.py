"""Views for tests of a stage: random tensors for every signal that it declares."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core import signals
from foveate.core.grid import Grid
from foveate.core.signals import CachedAttention, Cells, Hidden, Resource, Signal
from foveate.core.views import Arriving, ImageView, LayerView, PatchView, ReadView, View
from foveate.errors import SettingError
from foveate.testing.random_rows import HEAD, WIDTH, read_randomly

OF_MODEL = (Hidden, signals.Features, signals.Deepstack, signals.Cls)
WIDTHS: dict[type[Signal], int] = {**dict.fromkeys(OF_MODEL, WIDTH), signals.TowerKeys: HEAD}
"""Columns of the signals that are rows of normal numbers. Those of the model's width have its dtype."""
OWN = "own"
"""Key of the rows that a stage works on. They exist even if it declares no signals."""

Tensors = Mapping[Signal | str, Tensor]


def made_view(
    stage: Stage,
    tokens: int | Tensor,
    *,
    grid: Grid | None = None,
    arriving: Arriving | None = None,
    notes: Mapping[str, Tensor] | None = None,
    tensors: Tensors | None = None,
) -> View:
    """Return a view for a stage, with random tensors of the right shape for every signal that it declares.

        stage.cut(made_view(stage, 25, grid=(5, 5)))

    Args:
        stage: A stage that gets a view: in the tower, after it, or before a decoder layer.
        tokens: The number of arriving tokens (or patches), or their indices among the tokens that entered, (tokens,)
            int64.
        grid: Rows and columns of the tokens, if they form a grid; a tower's patches always do.
        arriving: The counts known on the host; None if nothing was dropped before.
        notes: Notes of earlier stages of the method.
        tensors: Tensors of `made_tensors` with another seed or dtype. Needed for a `Resource`.

    Raises:
        SettingError: If the stage gets no view, or reads a signal that cannot be made.
    """
    count = tokens if isinstance(tokens, int) else len(tokens)
    values = dict(tensors or made_tensors(stage, count))
    own = values.pop(OWN)
    arriving = arriving or Arriving.all_of(count)
    shown: dict[str, Any] = {"notes": notes, "signals": values}
    if isinstance(tokens, Tensor):
        shown["tokens"] = tokens
    if stage.place is Place.TOWER:
        return PatchView(own, grid or _squarest(count), arriving=arriving, **shown)
    if stage.place is Place.DECODE:
        return ReadView(values[CachedAttention()], arriving=arriving, **shown)
    untouched = arriving.tokens == arriving.entered
    if stage.place in (Place.BEFORE_PROJECTOR, Place.BEHIND_PROJECTOR):
        grids = () if grid is None else (grid,)
        return ImageView(own, grid=grid, merged=not untouched, arriving=replace(arriving, grids=grids), **shown)
    if Cells() in stage.reads and untouched:
        arriving = replace(arriving, grids=(_squarest(count),))
    before = [values.pop(signal) for signal in list(values) if isinstance(signal, Hidden) and signal.back]
    hidden = None
    if any(isinstance(signal, Hidden) for signal in stage.reads):
        hidden = own
    values.pop(Hidden(), None)
    return LayerView(hidden, hidden_before=before[0] if before else None, count=count, arriving=arriving, **shown)


def made_tensors(
    stage: Stage, tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[Signal | str, Tensor]:
    """Return the random tensors for `made_view`: one per signal, and the rows themselves.

    Args:
        stage, tokens: See `made_view`.
        seed: The seed of the random numbers.
        dtype: The dtype of hidden states and features. Signals of attention and keys are always float32.

    Raises:
        SettingError: If the stage gets no view, or reads a signal that cannot be made.
    """
    if stage.place in (Place.PIXELS, Place.CACHE):
        raise SettingError(f"{stage} reads no tokens, so it has no view.")
    random = torch.Generator().manual_seed(seed)
    values: dict[Signal | str, Tensor] = {OWN: torch.randn(tokens, WIDTH, generator=random).to(dtype)}
    for signal in stage.reads:
        values[signal] = make_signal(signal, tokens, dtype, random)
    return values


def make_signal(signal: Signal, tokens: int, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Return a random tensor with the shape and dtype that `foveate.core.signals` documents for a signal."""
    kind = type(signal)
    if kind in WIDTHS:
        values = torch.randn(1 if kind is signals.Cls else tokens, WIDTHS[kind], generator=random)
        return values.to(dtype) if WIDTHS[kind] == WIDTH else values
    if kind in (CachedAttention, signals.TowerAttention):
        return torch.rand(tokens, generator=random).softmax(dim=0)
    if kind is signals.Rotary:
        return torch.rand(tokens, 2, generator=random, dtype=torch.float64) * 2 - 1
    if kind is Cells:
        rows, columns = _squarest(tokens)
        return torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns)).view(tokens, 3)
    if not isinstance(signal, Resource) and signal.can_be_read():
        return read_randomly(signal, tokens, dtype, random)
    what = f"resource {signal.name!r}" if isinstance(signal, Resource) else repr(signal)
    raise SettingError(f"No tensor can be made for the {what}: give it with tensors=.")


def _squarest(tokens: int) -> Grid:
    """Return the grid of this many tokens that is closest to a square: 24 -> (4, 6)."""
    rows = max((side for side in range(1, math.isqrt(tokens) + 1) if tokens % side == 0), default=1)
    return rows, tokens // rows
