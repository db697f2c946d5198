"""Decode: a cache layer that stores the kept tokens and reports unpruned lengths to the model."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from foveate._transformers import DynamicLayer, unsupported
from foveate.core.tensors import Change, Memo, on_tensors
from foveate.engine import guards, rooms
from foveate.engine.lives.chosen import Chosen
from foveate.engine.rooms import Room

MEMO_SIZE = 8
"""How many tensors are cached that layers of one cache share. Layers that can share are usually consecutive."""
SHIFT = "shift"
"""Name of a note: by how much positions have shrunk on a layer, (samples,) int64, if rows were renumbered.

The column of this name says by how much each slot's column in a window is behind its unpruned column.
"""
NOTHING: Mapping[str, Any] = MappingProxyType({})
RESUMES: list[Callable[["PrunedLayer", dict[str, Any]], None]] = []
"""Functions that let a layer go on with the lives that foveate 0.4.0 pickled as its attributes."""


class Coming(NamedTuple):
    """What the next update of a layer brings: see `PrunedLayer.announce`."""

    columns: Tensor | None
    span: int
    ragged: bool = False
    window_columns: Tensor | None = None
    disorder: bool = False
    beside: Mapping[str, Tensor] = NOTHING


class LayerNote(ABC):
    """What belongs to a cache layer and not to its slots. It follows every change of the layer.

    Attributes:
        is_of_steps: Whether it ends with the answer, when all slots are read again.
    """

    __slots__ = ()
    is_of_steps: ClassVar[bool] = False

    @abstractmethod
    def with_samples(self, change: Change, reorders: bool) -> Self:
        """Return the note after a change of the samples.

        Args:
            change: Changes a tensor with the samples in front.
            reorders: Whether beams only change places within their samples.
        """

    def without(self, start: int, end: int) -> Self | None:
        """Return the note without the unpruned columns from start to end. None: it holds no longer."""
        return self

    def after_update(self, layer: "PrunedLayer") -> Self:
        """Return the note after an update of the layer, which has all slots that the update returns."""
        return self


class PrunedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the kept tokens of one decoder layer.

    Its lengths are those of the unpruned sequence, so the model's own masks and positions stay right.

    Attributes:
        base: (samples, slots) int64, the unpruned column of each of the first slots, −1 for a pad. The
            slots after them (the tail: decoded tokens, later text) follow column by column.
        base_end: The unpruned column where the tail begins.
        ragged: Whether any slot is a pad.
        seen: The unpruned length.
        beside: What steps read of each slot too, (samples, slots) each, by name; see `base`. In the tail it is the
            note of that name, or 0.
        notes: What belongs to the layer and not to its slots, by name: tensors, (samples,) each, or a `LayerNote`.
        memo: Shared by the layers of a cache.
        window: Unpruned columns a row sees, its own included; None if all. See `WindowedLayer`.
        held: How many slots each sample had at first, if steps read only some; see `LimitedLayer`.
    """

    is_croppable = True

    window: int | None = None
    held: tuple[int, ...] | None = None
    _announced: Coming | None = None
    _inside = True  # whether the last update was announced
    _room: Room | None = None

    def __init__(self, layer: DynamicLayer, memo: Memo | None = None) -> None:
        """Take over the contents of an ordinary layer. The layers of one cache share one `memo`."""
        super().__init__()
        self.memo = Memo(MEMO_SIZE) if memo is None else memo
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, layer.is_initialized
        if self.is_initialized:
            self.device = layer.device
        self.seen: int = layer.get_seq_length()
        # If a window evicted slots, fewer are stored than were seen.
        self.base_end = self.seen - layer.keys.shape[-2] if self.seen else 0
        self.base: Tensor | None = None
        self.ragged = False
        self.beside: Mapping[str, Tensor] = {}
        self.notes: Mapping[str, Tensor | LayerNote] = {}

    # -- copies --------------------------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which gets its own room. Shared rows stay unchanged."""
        if self._room is not None:
            self._room.looked_at = True
        return {**self.__dict__, "_room": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy, or of a layer that foveate 0.4.0 pickled."""
        if "notes" in state:
            self.__dict__.update(state)
        else:
            self._take_old(state)

    def _take_old(self, state: dict[str, Any]) -> None:
        """Take the state of a layer that foveate 0.4.0 pickled: its lives were attributes."""
        self.memo, self.base, self.ragged, self.beside, self.notes = state["_memo"], None, False, {}, {}
        for name in ("keys", "values", "is_initialized", "device", "seen", "base", "base_end", "ragged", "held"):
            if state.get(name) is not None:
                setattr(self, name, state[name])
        self.shift = state.get("shift")
        for resume in RESUMES:
            resume(self, state)

    def with_tensors(self, change: Change, memo: Memo) -> Self:
        """Return a copy with another memo, and `change` applied to the tensors."""
        other = copy.copy(self)
        other.memo = memo
        other.follow(change, reorders=True)
        other.await_steps()
        return other

    def leave_room(self) -> None:
        """Hold rows that no other layer's will replace."""
        self._room = None

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """Return a layer with these attributes."""
        layer = cls.__new__(cls)
        layer.__dict__ = state
        return layer

    def give_place_to(self, layer: "PrunedLayer") -> None:
        """Let another layer stand where this one stands, and forget this one.

        transformers and others call the layers of a cache and put none of them in its place: so this object becomes the
        other.
        """
        self.__class__, self.__dict__ = type(layer), vars(layer)  # type: ignore[assignment]

    def settle(self) -> None:
        """Let steps read all slots again, and forget what they chose by."""
        if self.notes:
            notes = self.notes.items()
            self.notes = {name: note for name, note in notes if not (isinstance(note, LayerNote) and note.is_of_steps)}

    # -- slots, and the columns they stand for -------------------------------------------------------------------------

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (samples, heads, slots, head size) each."""
        return self.keys, self.values

    @property
    def attended(self) -> "PrunedLayer":
        """The layer that has the slots to which the next rows attend."""
        return self

    @property
    def shift(self) -> Tensor | None:
        """(samples,), by how much positions have shrunk on this layer, if rows are renumbered; else None."""
        shift = self.notes.get(SHIFT)
        assert not isinstance(shift, LayerNote)
        return shift

    @shift.setter
    def shift(self, shift: Tensor | None) -> None:
        others = {name: note for name, note in self.notes.items() if name != SHIFT}
        self.notes = others if shift is None else {**others, SHIFT: shift}

    @property
    def windowed(self) -> bool:
        """Whether a window has ever counted other columns than `base`."""
        return SHIFT in self.beside

    @property
    def is_pruned(self) -> bool:
        """Whether the layer was ever without some column."""
        return self.base is not None

    def columns(self, coming: Tensor | int, samples: int, device: torch.device) -> Tensor:
        """Return the unpruned column of every slot once `coming` (columns, or a number of next columns) is added.

        Shape: (samples, slots) int64, −1 for a pad.
        """
        if isinstance(coming, int):
            coming = torch.arange(self.seen, self.seen + coming, device=device).expand(samples, -1)
        if self.seen == 0 and self.base is None:
            return coming
        # Of six columns with 2 and 3 dropped, and two decoded tokens: base 0 1 4 5, tail 6 7.
        tail = torch.arange(self.base_end, self.seen, device=device).expand(samples, -1)
        if self.base is None:
            return torch.cat((tail, coming), dim=1)
        return torch.cat((self.base, tail, coming), dim=1)

    def window_slots(self, coming: Tensor | None = None) -> Tensor | None:
        """Return the column in which a window counts each slot, (samples, slots) int64. None: as `columns`.

        `coming` are those of rows that are added, (samples, rows).
        """
        base, behind, shift = self.base, self.beside.get(SHIFT), self.shift
        if coming is None and behind is None and (shift is None or not self.windowed):
            return None

        def count() -> Tensor:
            first = base if base is None or behind is None else base - behind
            like = next(part for part in (coming, first, shift) if part is not None)
            tail = torch.arange(self.base_end, self.seen, device=like.device).expand(len(like), -1)
            if shift is not None:
                tail = tail - shift.to(like.device)[:, None]
            return torch.cat([part for part in (first, tail, coming) if part is not None], dim=1)

        return self.memo.once(count, "counted", base, behind, self.base_end, self.seen, shift, coming)

    def values_of(self, name: str, coming: Tensor | None = None, rows: int = 0) -> Tensor | None:
        """Return a column at every slot, and at `rows` rows that are added: (samples, slots). None: it is 0 everywhere.

        `coming` are its values at these, (samples, rows); None: 0.
        """
        own, note, tail = self.beside.get(name), self.notes.get(name), self.seen - self.base_end
        like = next((part for part in (own, coming, note) if isinstance(part, Tensor)), None)
        if like is None:
            return None

        def join() -> Tensor:
            first = like.new_zeros(len(like), 0 if self.base is None else self.base.shape[1]) if own is None else own
            last = like.new_zeros(len(like), rows) if coming is None else coming
            middle = like.new_zeros(len(like), tail)
            if isinstance(note, Tensor):
                middle = middle + note.to(like.device)[:, None]
            return torch.cat((first, middle, last), dim=1)

        return self.memo.once(join, name, own, coming, self.base, tail, rows, note)

    def beside_all(self) -> dict[str, Tensor]:
        """Return every column at every slot."""
        names = {*self.beside, SHIFT} if self.windowed else self.beside
        every = {name: self.values_of(name) for name in sorted(names)}
        return {name: values for name, values in every.items() if values is not None}

    @property
    def facts(self) -> tuple[Any, ...]:
        """What a layer's arguments depend on. Layers whose facts are the same objects hold the same columns."""
        return self.base, self.base_end, self.seen, self.ragged, self.shift, *self.beside.values()

    # -- rows that come ------------------------------------------------------------------------------------------------

    def announce(
        self,
        columns: Tensor | None,
        span: int,
        ragged: bool = False,
        window_columns: Tensor | None = None,
        disorder: bool = False,
        beside: Mapping[str, Tensor] = NOTHING,
    ) -> None:
        """Announce what the next `update` brings.

        Args:
            columns: Unpruned columns of its rows, (samples, rows), −1 for a pad; None: the next `span` columns.
            span: Unpruned columns the call covers.
            ragged: Whether any row is a pad.
            window_columns: The columns in which a window counts the rows, (samples, rows); None: where it counts
                `columns`, in all slots.
            disorder: See `Rows`.
            beside: Columns of the table of rows, (samples, rows) each, by name.
        """
        behind = None
        if columns is not None and window_columns is not None:
            here, there = columns, window_columns
            behind = self.memo.once(lambda: here - there, "behind", here, there)
            # Joined now, while the tail is counted by the shift of earlier turns.
            behind = self.values_of(SHIFT, behind, columns.shape[1])
        self._announced = Coming(columns, span, ragged, behind, disorder, beside)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, (samples, heads, rows, head size), and return all.

        Raises:
            SessionError: If a pruned layer is used outside `foveate.drop`.
        """
        came, coming = key_states.shape[-2], self._announced
        if coming is None:
            self.settle()
            if self.is_pruned:
                guards.refuse_pruned_cache_outside()
            self._inside, coming = False, Coming(None, came)
        elif not self._inside:
            self._inside = True
        self._announced, columns = None, coming.columns
        rows = coming.span if columns is None else columns.shape[1]
        if came != rows:
            raise unsupported(f"stores {came} rows in a layer of the cache where its decoder layer ran on {rows}")
        if columns is not None:
            self._join(columns, coming)
        self.seen += coming.span
        self._append(key_states, value_states)
        if self.notes:
            notes = self.notes.items()
            self.notes = {
                name: note.after_update(self) if isinstance(note, LayerNote) else note for name, note in notes
            }
        return self.states

    def _join(self, columns: Tensor, coming: Coming) -> None:
        """Let the base end with these columns, (samples, rows). It takes in the tail."""
        names = {*self.beside, *coming.beside}
        if coming.window_columns is not None:
            names -= {SHIFT}
        joined = {name: self.values_of(name, coming.beside.get(name), columns.shape[1]) for name in sorted(names)}
        joined[SHIFT] = joined.get(SHIFT, coming.window_columns)
        self.beside = {name: values for name, values in joined.items() if values is not None}
        key = "joined", columns, self.base, self.base_end, self.seen
        self.base = self.memo.once(lambda: self.columns(columns, len(columns), columns.device), *key)
        self.base_end = self.seen + coming.span
        self.ragged |= coming.ragged

    def update_indexer(self, states: Tensor) -> Tensor:
        """Return a zero index over all slots. Rows pick every slot, so the values do not matter and nothing is stored.

        Args:
            states: The index of the new rows, (samples, rows, size).

        Raises:
            SessionError: Outside `foveate.drop`, where rows may pick only some slots.
        """
        if not self._inside:
            guards.refuse_pruned_cache_outside()
        return states.new_zeros(len(states), self.slots, states.shape[-1])

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Append rows. From the second step on, rows of a long layer are written into a room."""
        coming, room = key_states.shape[-2], self._room
        grows = coming <= rooms.MOST_STEP and not torch.is_grad_enabled()
        if room is not None and grows and room.takes(self, coming):
            self.keys, self.values = room.put(key_states, value_states)
            return
        super().update(key_states, value_states)
        self.await_steps()

    def await_steps(self) -> None:
        """Write the rows of the next steps into a room if there are many slots, and these are then unchanged."""
        is_long = self.is_initialized and self.keys.shape[-2] >= rooms.LONG
        room = Room(self.keys) if is_long else None
        if room is not self._room:
            self._room = room

    # -- lengths -------------------------------------------------------------------------------------------------------

    def get_seq_length(self) -> int:
        """Return the unpruned length."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the model's own masks cover, and how many come before them."""
        return self.seen + query_length, 0

    @property
    def slots(self) -> int:
        """Number of slots, pads included."""
        return self.keys.shape[-2] if self.is_initialized else 0

    @property
    def is_whole(self) -> bool:
        """Whether every announced row has arrived and every known column has its slot."""
        based = 0 if self.base is None else self.base.shape[1]
        return self._announced is None and self.slots == based + self.seen - self.base_end

    def valid_slots(self, dead: Sequence[int] | None = None) -> Callable[[], list[int]]:
        """Return a function that counts each sample's slots that are neither pads now nor among its `dead` ones.

        The host waits for the device only when it is called.
        """
        base, slots, dead = self.base, self.slots, dead or [0] * len(self.keys)

        def count() -> list[int]:
            pads = [0] * len(dead) if base is None else (base < 0).sum(dim=1).tolist()
            return [slots - pad - less for pad, less in zip(pads, dead, strict=True)]

        return count

    # -- samples -------------------------------------------------------------------------------------------------------

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.follow(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)), reorders=True)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.follow(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.follow(lambda tensor: tensor[indices.to(tensor.device)])

    def follow(self, change: Change, rows: bool = True, reorders: bool = False) -> None:
        """Apply a change to every tensor with the samples in front.

        Args:
            change: The change.
            rows: Whether it applies to keys and values too.
            reorders: See `LayerNote.with_samples`.
        """
        if rows:
            self.keys, self.values = on_tensors((self.keys, self.values), change)
        self.base, self.beside = on_tensors(self.base, change), on_tensors(self.beside, change)
        self.notes = {name: _changed(note, change, reorders) for name, note in self.notes.items()}
        self._room = None

    def tensors(self) -> list[Tensor]:
        """Return every tensor that the layer holds."""
        tensors: list[Tensor] = []

        def visit(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor

        on_tensors((self.keys, self.values, self.base, self.beside), visit)
        for note in self.notes.values():
            _changed(note, visit, reorders=True)
        return tensors

    # -- slots that go -------------------------------------------------------------------------------------------------

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` unpruned columns (a negative number, as in transformers)."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop takes a negative number, minus the number of tokens to remove; got {tokens_to_remove}."
            )
        tokens_to_remove = int(tokens_to_remove)  # transformers 5.16 passes a tensor
        end = self.seen + tokens_to_remove
        self.notes = self._notes_without(end, self.seen)
        from_tail = min(-tokens_to_remove, self.seen - self.base_end)
        if from_tail:
            self._cut_tail(from_tail)
        if self.base is not None and end < self.base_end:  # samples lose different numbers of the first slots
            stays = (self.base < end) & (self.base >= 0)
            counts = stays.sum(dim=1).tolist()
            chosen = Chosen.exactly(self.base, stays, counts)
            self.beside = chosen.of_all(self.beside)
            self._keep_slots(chosen)
            self.base_end = end
        self.seen = end

    def _cut_tail(self, rows: int) -> None:
        """Remove the last rows of each sample."""
        if self._room is not None and self._room.gives_back(self, rows):
            self.keys, self.values = self._room.rows()
        else:
            self.keys = self.keys[..., :-rows, :]
            self.values = self.values[..., :-rows, :]

    def take_off(self, pads: int, cut: Change) -> None:
        """Remove the last `pads` slots, which nobody reads. `cut` removes as many from the end of a column."""
        self.keys, self.values = self.keys[..., :-pads, :], self.values[..., :-pads, :]
        self.seen -= pads
        if self.base is not None:
            self.base, self.base_end = cut(self.base), self.base_end - pads
        self.beside = on_tensors(self.beside, cut)
        self.await_steps()

    def forget(self, start: int, end: int, positions: int, turn: Callable[[Tensor, int], Tensor] | None) -> None:
        """Remove the slots of the unpruned columns from start to end, in a cache of one sample.

        Later columns become less by `end − start`, as do the columns in which a window counts them. Where rows were
        renumbered, later positions and counted columns become less by the number of slots that go.

        Args:
            start, end: The columns.
            positions: How much less the positions of later rows become, if none was renumbered on this layer.
            turn: Rotates keys, (1, heads, slots, head size), back by a number of positions; None: the layer has no
                RoPE.
        """
        size, device, shift = end - start, self.keys.device, self.shift
        alike = "forgotten", self.base, self.base_end, self.seen, start, end
        first, last, rows, base = self.memo.once(lambda: self._without(start, end, device), *alike)
        counted = size
        if shift is not None:
            counted = positions = rows
        beside = {}
        for name, values in self.beside_all().items():
            later = values[:, last:]
            if name == SHIFT:
                later = later + (counted - size)
            beside[name] = torch.cat((values[:, :first], later), dim=1)
        self.notes = self._notes_without(start, end)
        if shift is not None:
            self.shift = shift - size + counted
        keys, values = self.states
        turned = keys[..., last:, :]
        if turn is not None and turned.shape[-2]:
            turned = turn(turned, positions)
        keys = torch.cat((keys[..., :first, :], turned), dim=-2)
        self._store(keys, torch.cat((values[..., :first, :], values[..., last:, :]), dim=-2))
        self.seen -= size
        if base is not None:
            self.base, self.base_end, self.beside = base, self.seen, beside

    def _without(self, start: int, end: int, device: torch.device) -> tuple[int, int, int, Tensor | None]:
        """Return the slots of the columns from start to end, first and one past the last; how many rows these are; and
        the base without them."""
        if self.base is None and self.base_end == 0:
            return start, end, end - start, None
        columns = self.columns(0, 1, device)
        places = columns
        if self.ragged:  # a pad goes with the slot before it: columns −1 0 −1 3 are at −1 0 0 3
            places = columns.cummax(dim=1).values
        first, last = torch.stack(((places < start).sum(), (places < end).sum())).tolist()
        rows, later = last - first, columns[:, last:] - (end - start)
        if self.ragged:
            rows = int((columns[:, first:last] >= 0).sum())
            later = later.masked_fill(columns[:, last:] < 0, -1)
        return first, last, rows, torch.cat((columns[:, :first], later), dim=1)

    def _notes_without(self, start: int, end: int) -> dict[str, Tensor | LayerNote]:
        """Return the notes without the unpruned columns from start to end."""
        notes = {
            name: note.without(start, end) if isinstance(note, LayerNote) else note for name, note in self.notes.items()
        }
        return {name: note for name, note in notes.items() if note is not None}

    def keep(self, wanted: Tensor, counts: Sequence[int]) -> None:
        """Keep only some of the rows that came last.

        Layers that hold the same columns and get the same tensor share the computation.

        Args:
            wanted: (samples, rows) bool, in the order they came.
            counts: How many of them each sample has.
        """
        earlier = max(0, self.slots - wanted.shape[1])  # slots of earlier turns; all of them stay
        chosen = self._choose(wanted, counts, earlier)
        every = self.beside_all()
        self.beside = self.memo.once(lambda: chosen.of_all(every), "kept beside", chosen, *every.values())
        self.base_end = self.seen
        self._keep_slots(chosen)

    def count_anew(self, rows: int, shift: Tensor) -> None:
        """After `keep`: let a window count the last `rows` slots one behind the other, up to a column that is `shift`,
        (samples,), before the sequence's end."""
        base, behind = self.base, self.beside.get(SHIFT)
        assert base is not None
        earlier = base.shape[1] - rows

        def count() -> Tensor:
            counted = torch.arange(-rows, 0, device=shift.device) + self.seen - shift[:, None]
            first = base.new_zeros(len(base), earlier) if behind is None else behind[:, :earlier]
            return torch.cat((first, base[:, earlier:] - counted), dim=1)

        self.beside = {
            **self.beside,
            SHIFT: self.memo.once(count, "counted anew", base, behind, rows, self.seen, shift),
        }

    def _choose(self, wanted: Tensor, counts: Sequence[int], earlier: int) -> Chosen:
        """Choose the slots that `keep` keeps."""
        rows = self.slots - earlier  # the window may have evicted the first of them

        def choose() -> Chosen:
            columns = self.columns(0, wanted.shape[0], wanted.device)
            stays = wanted[:, wanted.shape[1] - rows :] & (columns[:, earlier:] >= 0)  # (samples, rows)
            most = min(rows, max(counts))
            even = rows == wanted.shape[1] and min(counts) == most
            return Chosen.of(columns, earlier, stays, most, ragged=not even or (earlier > 0 and self.ragged))

        alike = "kept", wanted, self.base, self.base_end, self.seen, self.slots, self.ragged
        return self.memo.once(choose, *alike)

    def reset(self) -> None:
        self.keys, self.values, self.is_initialized = None, None, False  # a copy may read the rows: no zeros into them
        self.seen = 0
        self.base, self.base_end, self.ragged = None, 0, False
        self.beside, self.notes = {}, {}
        self._announced = self._room = None

    def _keep_slots(self, chosen: Chosen) -> None:
        """Keep these slots and no others."""
        self.base, self.ragged = chosen.base, chosen.ragged
        self._store(*map(chosen.of_states, self.states))

    def _store(self, keys: Tensor, values: Tensor) -> None:
        """Hold these rows in place of all."""
        self.keys, self.values, self._room = keys, values, None


def _changed(note: Tensor | LayerNote, change: Change, reorders: bool) -> Tensor | LayerNote:
    """Return a note after a change of the samples."""
    if isinstance(note, LayerNote):
        return note.with_samples(change, reorders)
    return change(note)


def without_columns(values: Tensor, start: int, end: int) -> Tensor:
    """Return what is known of unpruned columns, (samples, columns), without those from start to end."""
    if end >= values.shape[1]:
        return values[:, :start]
    return torch.cat((values[:, :start], values[:, end:]), dim=1)
