"""What tests of a method need: a stage's view made of random tensors, with every signal that it declares."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core.grid import Grid
from foveate.core.signals import (
    Attention,
    CachedAttention,
    Cells,
    Cls,
    Columns,
    Deepstack,
    Features,
    Hidden,
    KeyNorms,
    Keys,
    Normed,
    OwnSignal,
    Pivots,
    Products,
    Resource,
    Rotary,
    Signal,
    Text,
    TowerAttention,
    TowerKeys,
    ValueLikeness,
)
from foveate.core.views import Arriving, ImageView, LayerView, PatchView, ReadView, View
from foveate.errors import SettingError

WIDTH, HEAD, WORDS, HEADS = 8, 4, 5, 2
OWN = "own"
"""Key of the rows that a stage works on, whether it declares them or not."""

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
    """What a stage sees of so many tokens: random tensors of the right shape for every signal that it declares.

        stage.cut(made_view(stage, 25, grid=(5, 5)))

    Args:
        stage: At any place where a view is seen: in the tower, behind it, or before a decoder layer.
        tokens: How many tokens (or patches) arrive; or which of those that entered they are, (tokens,) int64.
        grid: Rows and columns of the tokens, if they stand on one; a tower's patches always do.
        arriving: What the host knows; None: none has left yet.
        notes: What earlier stages of the same method have remembered.
        tensors: Of another seed or dtype, as `made_tensors` makes them; a `Resource` must be given.

    Raises:
        SettingError: If the stage sees no tokens, or reads what cannot be made.
    """
    count = tokens if isinstance(tokens, int) else len(tokens)
    made = dict(tensors or made_tensors(stage, count))
    own = made.pop(OWN)
    arriving = arriving or Arriving.all_of(count)
    shown: dict[str, Any] = {"notes": notes, "signals": made}
    if isinstance(tokens, Tensor):
        shown["tokens"] = tokens
    if stage.place is Place.TOWER:
        return PatchView(own, grid or _squarest(count), arriving=arriving, **shown)
    if stage.place is Place.DECODE:
        return ReadView(made[CachedAttention()], arriving=arriving, **shown)
    untouched = arriving.tokens == arriving.entered
    if stage.place in (Place.BEFORE_PROJECTOR, Place.BEHIND_PROJECTOR):
        grids = () if grid is None else (grid,)
        return ImageView(own, grid=grid, merged=not untouched, arriving=replace(arriving, grids=grids), **shown)
    if Cells() in stage.reads and untouched:
        arriving = replace(arriving, grids=(_squarest(count),))
    before = [made.pop(signal) for signal in list(made) if isinstance(signal, Hidden) and signal.back]
    hidden = None
    if any(isinstance(signal, Hidden) for signal in stage.reads):
        hidden = own
    made.pop(Hidden(), None)
    return LayerView(hidden, hidden_before=before[0] if before else None, count=count, arriving=arriving, **shown)


def made_tensors(
    stage: Stage, tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[Signal | str, Tensor]:
    """The random tensors of `made_view`: of every signal, and of the rows themselves.

    Args:
        stage, tokens: See `made_view`.
        seed: Of the random numbers.
        dtype: Of hidden states and features; what is read of attention and keys is always float32.

    Raises:
        SettingError: If the stage sees no tokens, or reads what cannot be made.
    """
    if stage.place in (Place.PIXELS, Place.CACHE):
        raise SettingError(f"{stage} sees no tokens, so it has no view.")
    random = torch.Generator().manual_seed(seed)
    made: dict[Signal | str, Tensor] = {OWN: torch.randn(tokens, WIDTH, generator=random).to(dtype)}
    for signal in stage.reads:
        made[signal] = make_signal(signal, tokens, dtype, random)
    return made


def make_signal(signal: Signal, tokens: int, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """A tensor as `foveate.core.signals` says this one is."""
    if isinstance(signal, Attention | CachedAttention | TowerAttention):
        return torch.rand(tokens, generator=random).softmax(dim=0)
    if isinstance(signal, Keys | TowerKeys):
        return torch.randn(tokens, HEAD, generator=random)
    if isinstance(signal, KeyNorms):
        return torch.rand(tokens, generator=random)
    if isinstance(signal, Hidden | Features | Normed | Deepstack):
        return torch.randn(tokens, WIDTH, generator=random).to(dtype)
    if isinstance(signal, Columns):
        return torch.arange(tokens + signal.pivots)
    if isinstance(signal, Rotary):
        return torch.rand(tokens, 2, generator=random, dtype=torch.float64) * 2 - 1
    if isinstance(signal, ValueLikeness):
        return torch.rand(tokens, 2, generator=random).softmax(dim=0)
    if isinstance(signal, OwnSignal):
        shapes = [(tokens, WIDTH) if name == "hidden" else (HEADS, tokens, HEAD) for name in signal.of]
        return signal.of_rows([torch.randn(shape, generator=random).to(dtype) for shape in shapes])
    if isinstance(signal, Products):
        return torch.randn(tokens, HEADS, generator=random)
    if isinstance(signal, Pivots):
        return torch.randn(signal.count, WIDTH, generator=random).to(dtype)
    if isinstance(signal, Cls):
        return torch.randn(1, WIDTH, generator=random).to(dtype)
    if isinstance(signal, Cells):
        rows, columns = _squarest(tokens)
        place = torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
        return place.view(tokens, 3)
    if isinstance(signal, Text):
        return torch.randn(WORDS, WIDTH, generator=random).to(dtype)
    if isinstance(signal, Resource):
        what = f"resource {signal.name!r}"
    else:
        what = repr(signal)
    raise SettingError(f"No tensor can be made for the {what}: give it with tensors=.")


def _squarest(tokens: int) -> Grid:
    """The grid of so many tokens that is nearest to a square."""
    rows = max((side for side in range(1, math.isqrt(tokens) + 1) if tokens % side == 0), default=1)
    return rows, tokens // rows
