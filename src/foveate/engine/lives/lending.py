"""Decode: what a cache layer remembers whose keys and values later layers attend to (it lends, they borrow)."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foveate.core.tensors import Change, on_tensors
from foveate.engine.lives.bare import RESUMES, LayerNote, PrunedLayer, without_columns

LENDING = "lending"
"""Name of a layer's note of this."""


@dataclass(frozen=True, slots=True, eq=False)
class Lending(LayerNote):
    """What the borrowers of a layer's keys need to know.

    Attributes:
        alive: (samples, columns) bool, which unpruned columns they see; they see all columns after these. None: those
            that the layer holds.
        returned: (samples, slots) int64, the columns of what the last update returned.
        counted: As `returned`, in the columns that a window counts; None: `returned`.
    """

    alive: Tensor | None = None
    returned: Tensor | None = None
    counted: Tensor | None = None

    def with_samples(self, change: Change, reorders: bool) -> "Lending":
        """See `LayerNote`."""
        return Lending(*on_tensors((self.alive, self.returned, self.counted), change))

    def without(self, start: int, end: int) -> "Lending":
        """See `LayerNote`."""
        if self.alive is None:
            return self
        return replace(self, alive=without_columns(self.alive, start, end))

    def after_update(self, layer: PrunedLayer) -> "Lending":
        """See `LayerNote`."""
        samples = len(layer.keys)
        return replace(self, returned=layer.columns(0, samples, layer.keys.device), counted=layer.window_slots())


def lend(layer: PrunedLayer) -> None:
    """Let a layer remember what its borrowers need, from its next update on."""
    if LENDING not in layer.notes:
        layer.notes = {**layer.notes, LENDING: Lending()}


def lent_by(layer: PrunedLayer) -> Lending:
    """Return what a layer remembers for its borrowers."""
    lending = layer.notes[LENDING]
    assert isinstance(lending, Lending)
    return lending


def note_alive(layer: PrunedLayer, rows: Tensor, past: int) -> None:
    """Note that borrowers see of this call's columns only those of rows that are left; see `alive_columns`."""
    lending = lent_by(layer)
    alive = alive_columns(rows, past, lending.alive, layer.seen)
    layer.notes = {**layer.notes, LENDING: replace(lending, alive=alive)}


def _resume(layer: PrunedLayer, old: dict[str, Any]) -> None:
    """Go on from the attributes `lends` and `alive`."""
    if old.get("lends") or old.get("alive") is not None:
        layer.notes = {**layer.notes, LENDING: Lending(old.get("alive"))}


RESUMES.append(_resume)


def alive_columns(rows: Tensor, past: int, before: Tensor | None, total: int) -> Tensor:
    """Return which unpruned columns borrowing layers see after a call, (samples, total) bool.

    Args:
        rows: (samples, rows) int64, columns of the rows that are left in this call, −1 for a pad.
        past: Columns of earlier calls.
        before: Which of these were seen, (samples, columns) bool. Columns beyond it, or all if None, were seen.
        total: Columns with this call's.
    """
    alive = torch.zeros(len(rows), total + 1, dtype=torch.bool, device=rows.device)
    alive = alive.scatter(1, rows.masked_fill(rows < 0, total), True)[:, :total]  # pads write to the extra last column
    alive[:, :past] = True
    if before is not None:
        alive[:, : before.shape[1]] &= before.to(alive.device)
    return alive


def as_seen(columns: Tensor, alive: Tensor) -> Tensor:
    """Return the column of each slot, (samples, slots) int64; −1 if borrowing layers do not see it."""
    alive = alive.to(columns.device)
    last = alive.shape[1] - 1
    # Columns after those in `alive` are all seen. Pads are read at column 0 and are −1 already.
    hidden = ~alive.gather(1, columns.clamp(min=0, max=last)) & (columns <= last)
    return columns.masked_fill(hidden, -1)
