"""Decode: a cache layer of which steps read only some slots, and what the choice of them is made from."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from foveate.core.tensors import Change, Memo
from foveate.engine.lives.bare import RESUMES, LayerNote, PrunedLayer, without_columns
from foveate.engine.lives.chosen import Chosen

KINDS = "kinds"
"""Name of the note `Kinds`."""
CHOICE = "choice"
"""Name of the note `Choice`."""


@dataclass(frozen=True, slots=True, eq=False)
class Kinds(LayerNote):
    """Which columns may stay unread.

    Attributes:
        of_columns: (samples, unpruned columns) int8, the kind of each: 0 padding, 1 text, 2 a vision token that may
            stay unread.
    """

    of_columns: Tensor

    def with_samples(self, change: Change, reorders: bool) -> "Kinds":
        """See `LayerNote`."""
        return Kinds(change(self.of_columns))

    def without(self, start: int, end: int) -> "Kinds":
        """See `LayerNote`."""
        return Kinds(without_columns(self.of_columns, start, end))


@dataclass(frozen=True, slots=True, eq=False)
class Choice(LayerNote):
    """What a stage that chooses in every step remembers of the previous step, on the layer whose attention it reads.

    Attributes:
        columns: (samples, slots) int64, the columns of the slots at the end of the prompt, −1 for a pad.
        kinds: (samples, slots) int8, their kinds.
        attention: (samples, slots), the attention that the previous step paid to each.
        read: (samples, slots) bool, which of them it read.
        end: The unpruned length at the end of the prompt.
        counts: Number of vision tokens and of text tokens of each sample; None if only the device knows.
    """

    is_of_steps = True

    columns: Tensor
    kinds: Tensor
    attention: Tensor
    read: Tensor
    end: int
    counts: Sequence[tuple[int, int]] | None = None

    def with_samples(self, change: Change, reorders: bool) -> "Choice":
        """See `LayerNote`. Beams of one sample have equal counts."""
        columns, kinds, attention, read = map(change, (self.columns, self.kinds, self.attention, self.read))
        return Choice(columns, kinds, attention, read, self.end, self.counts if reorders else None)

    def without(self, start: int, end: int) -> "Choice | None":
        """See `LayerNote`. Without columns of the prompt, the next prompt begins anew."""
        return None if start < self.end else self


def kinds_of(layer: PrunedLayer) -> Tensor | None:
    """Return the kinds of a layer's columns, see `Kinds`; None if every token is always read."""
    kinds = layer.notes.get(KINDS)
    return kinds.of_columns if isinstance(kinds, Kinds) else None


def choice_on(layer: PrunedLayer) -> Choice | None:
    """Return what is remembered on a layer of the previous step's choice."""
    choice = layer.notes.get(CHOICE)
    assert choice is None or isinstance(choice, Choice)
    return choice


class LimitedLayer(PrunedLayer):
    """A layer of which steps read only some slots. It takes the place of the layer, and says what that says.

    Args:
        whole: The layer. Its rows stay as they are until `settle` gives the place back.
        chosen: Its slots that are read.

    Attributes:
        whole: The layer.
        part: A layer with copies of the slots that are read, to which rows are added.
    """

    whole: PrunedLayer
    part: PrunedLayer

    def __init__(self, whole: PrunedLayer, chosen: Chosen) -> None:
        whole.leave_room()
        self.whole, self.part = whole, self._part(whole, chosen)
        self.part.base_end = whole.seen

    def __getattr__(self, name: str) -> Any:
        """Return what the whole layer has of this name."""
        if name == "whole":  # of a copy that has none yet
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, with layers of its own."""
        return {"whole": copy.copy(self.whole), "part": copy.copy(self.part)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def read(self, chosen: Chosen) -> None:
        """Let steps read only these slots of the whole layer, and the rows added since reading was first limited."""
        part, rows = self._part(self.whole, chosen), self._added()
        if rows is not None:
            part.keys, part.values = torch.cat((part.keys, rows[0]), dim=-2), torch.cat((part.values, rows[1]), dim=-2)
        part.base_end = self.part.base_end
        self.part = part

    @staticmethod
    def _part(whole: PrunedLayer, chosen: Chosen) -> PrunedLayer:
        """Copy the chosen slots of a layer."""
        part = PrunedLayer(whole, whole.memo)
        part.notes = {name: note for name, note in whole.notes.items() if not isinstance(note, LayerNote)}
        part.beside = chosen.of_all(whole.beside_all())
        part.keys, part.values = map(chosen.of_states, whole.states)
        part.base, part.ragged, part.held = chosen.base.to(part.keys.device), chosen.ragged, chosen.counts
        return part

    def _added(self) -> tuple[Tensor, Tensor] | None:
        """Return keys and values of the rows that were added since reading was first limited; None without any."""
        part = self.part
        rows = part.seen - part.base_end
        if not rows:
            return None
        return part.keys[..., -rows:, :], part.values[..., -rows:, :]

    def settle(self) -> None:
        """Give the place back to the layer with all its slots, and the rows that were added."""
        whole, rows = self.whole, self._added()
        if rows is not None:
            whole.keys, whole.values = (
                torch.cat((own, new), dim=-2) for own, new in zip((whole.keys, whole.values), rows, strict=True)
            )
        self.give_place_to(whole)
        self.settle()

    # -- the part is read ----------------------------------------------------------------------------------------------

    @property
    def attended(self) -> PrunedLayer:
        """The part."""
        return self.part

    def announce(self, columns: Tensor | None, span: int, *more: Any, **named: Any) -> None:
        """As of `PrunedLayer`."""
        self.part.announce(columns, span, *more, **named)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As of `PrunedLayer`. Outside the context, all slots are read."""
        if self.part._announced is None:
            self.settle()
            return self.update(key_states, value_states)
        states = self.part.update(key_states, value_states)
        self.whole.seen = self.part.seen
        return states

    def update_indexer(self, states: Tensor) -> Tensor:
        """As of `PrunedLayer`."""
        return self.part.update_indexer(states)

    # -- changes -------------------------------------------------------------------------------------------------------

    def with_tensors(self, change: Change, memo: Memo) -> Self:
        """As of `PrunedLayer`."""
        other = copy.copy(self)
        other.whole, other.part = self.whole.with_tensors(change, memo), self.part.with_tensors(change, memo)
        return other

    def follow(self, change: Change, rows: bool = True, reorders: bool = False) -> None:
        """As of `PrunedLayer`."""
        self.whole.follow(change, rows, reorders)
        self.part.follow(change, rows, reorders)

    def tensors(self) -> list[Tensor]:
        """As of `PrunedLayer`."""
        return self.whole.tensors() + self.part.tensors()

    def crop(self, tokens_to_remove: int) -> None:
        """As of `PrunedLayer`. If columns of the prompt go, all slots are read."""
        if self.part.seen + int(tokens_to_remove) < self.part.base_end:
            self.settle()
            self.crop(tokens_to_remove)
            return
        self.part.crop(tokens_to_remove)
        self.whole.seen = self.part.seen

    def forget(self, start: int, end: int, positions: int, turn: Callable[[Tensor, int], Tensor] | None) -> None:
        """As of `PrunedLayer`. All slots are read then."""
        self.settle()
        self.forget(start, end, positions, turn)

    def keep(self, wanted: Tensor, counts: Sequence[int]) -> None:
        """As of `PrunedLayer`. All slots are read then."""
        self.settle()
        self.keep(wanted, counts)

    def reset(self) -> None:
        self.give_place_to(self.whole)
        self.reset()


def _resume(layer: PrunedLayer, old: dict[str, Any]) -> None:
    """Go on from the attributes `kinds`, `memory`, `counted` and `reads`."""
    if old.get("kinds") is not None:
        layer.notes = {**layer.notes, KINDS: Kinds(old["kinds"])}
    if old.get("memory"):
        choice = Choice(**old["memory"], end=old["kinds"].shape[1], counts=old.get("counted"))
        layer.notes = {**layer.notes, CHOICE: choice}
    if old.get("reads") is not None:
        layer.give_place_to(LimitedLayer.of({"whole": copy.copy(layer), "part": old["reads"]}))


RESUMES.append(_resume)
