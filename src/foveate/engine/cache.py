"""Decode: a cache layer that stores the kept tokens and reports unpruned lengths to the model."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from foveate._transformers import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    IndexedLayer,
    LinearAttentionLayer,
    unsupported,
)
from foveate.core.tensors import Change, Memo, on_tensors
from foveate.engine import guards
from foveate.engine.rooms import MOST_STEP, Room
from foveate.errors import SessionError, UnsupportedError

LONG = 1024
"""From this many slots on, a layer reserves an eighth more for decoded rows. Below, copying costs no more."""
FOLLOWING = ("base", "window_columns", "beside", "shift", "kinds", "memory", "alive")
"""Attributes of a layer, besides keys and values, with the samples in front; some may be None."""
STORED = ("keys", "values")
"""Attributes of a layer that hold its rows."""
MEMO_SIZE = 8
"""How many tensors are cached that layers of one cache share. Layers that can share are usually consecutive."""


NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class Coming(NamedTuple):
    """What the next update of a layer brings: see `PrunedLayer.announce`."""

    columns: Tensor | None
    span: int
    ragged: bool = False
    window_columns: Tensor | None = None
    disorder: bool = False
    beside: Mapping[str, Tensor] = NOTHING


class PrunedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the kept tokens of one decoder layer.

    Its lengths are those of the unpruned sequence, so the model's own masks and positions stay right.

    Attributes:
        base: (samples, slots) int64, the unpruned column of each of the first slots, −1 for a pad. The
            slots after them (the tail: decoded tokens, later text) follow column by column.
        base_end: The unpruned column where the tail begins.
        ragged: Whether any slot is a pad.
        seen: The unpruned length.
        window: Unpruned columns a row sees, its own included; None if all. See `WindowedLayer`.
        window_columns: (samples, slots) int64, as `base`, but the columns in which a window counts the slots: see
            `Rows.window_columns`. At a pad they mean nothing. None: `base`. In the tail a window counts columns
            reduced by `shift`.
        beside: Columns of the table of rows that steps read too, (samples, slots) each, by name; see `base`. They are 0
            in the tail.
        windowed: Whether a window has ever counted other columns than `base`.
        disorder: See `Rows`; of any rows in `base`.
        shift: (samples,) int64, by how much positions have shrunk on this layer, if rows are renumbered; else None.
        head: Keys and values that all samples share as their beginning, (1, heads, slots, head size) each. `keys` and
            `values` then hold what each sample added. None if each sample has its own rows.
        reads: Set while steps read less: a layer with copies of the slots that are read, to which new rows are
            appended. `keys` and `values` are frozen until `settle`.
        held: If this layer is such a copy: how many slots each sample had at first.
        kinds: (samples, unpruned columns) int8, the kind of each: 0 padding, 1 text, 2 a vision token that may stay
            unread; None if every token is always read.
        waits: Whether slots outside a window stay until `release`, as a cut of the cache may bring them into it again.
        memory: What a per-step decode stage stores of the previous step, by name, with the samples in front.
        lends: Whether later layers attend to this layer's keys and values.
        returned: If the layer lends: (samples, slots) int64, the columns of what the last update returned.
        returned_window: As `returned`, in the columns that a window counts; None: `returned`.
        alive: If the layer lends: (samples, columns) bool, which unpruned columns the borrowers see; they see all
            columns after these. None: what this layer holds.
        counted: Number of vision tokens and of text tokens of each sample; None if only the device knows.
    """

    is_croppable = True

    window: int | None = None
    _inside = True  # whether the last update was announced
    base: Tensor | None = None
    ragged = False
    window_columns: Tensor | None = None
    beside: Mapping[str, Tensor] = NOTHING
    windowed = False
    disorder = False
    shift: Tensor | None = None
    head: tuple[Tensor, Tensor] | None = None
    reads: "PrunedLayer | None" = None
    held: tuple[int, ...] | None = None
    kinds: Tensor | None = None
    counted: list[tuple[int, int]] | None = None
    lends = waits = False
    returned: Tensor | None = None
    returned_window: Tensor | None = None
    alive: Tensor | None = None
    _pruned = False
    _announced: Coming | None = None
    _room: Room | None = None
    _order: Tensor | None = None  # places of the slots that the last update left, among the `_before` that it had
    _before = 0
    _grown: int | None = None  # id of the keys that the last update left

    def __init__(self, layer: DynamicLayer, memo: Memo | None = None) -> None:
        """Take over the contents of an ordinary layer. The layers of one cache share one `memo`."""
        super().__init__()
        self._memo = Memo(MEMO_SIZE) if memo is None else memo
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, layer.is_initialized
        if self.is_initialized:
            self.device = layer.device
        self.is_sliding = layer.is_sliding  # which mask the model builds for layers of this type
        self.seen: int = layer.get_seq_length()
        # If a window evicted slots, fewer are stored than were seen.
        self.base_end = self.seen - layer.keys.shape[-2] if self.seen else 0
        self.memory: dict[str, Tensor] = {}
        self.window_columns = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which gets its own room, as does its `reads`. Shared rows stay unchanged."""
        state = {**self.__dict__, "_room": None, "reads": copy.copy(self.reads)}
        if self._room is not None:
            state["keys"], state["values"] = self._room.copies(self.keys, self.values)
        return state

    def __getattr__(self, name: str) -> Any:
        """Return keys or values, which a replayed step leaves in the layer's room until they are wanted."""
        if name not in STORED or self._room is None:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        for part, rows in zip(STORED, self._room.rows(), strict=True):
            self.__dict__.setdefault(part, rows)
        return self.__dict__[name]

    # -- slots, and the columns they stand for -------------------------------------------------------------------------

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """All keys and values, (samples, heads, slots, head size) each."""
        if self.head is None:
            return self.keys, self.values
        return _behind(self.head[0], self.keys), _behind(self.head[1], self.values)

    def columns(self, coming: Tensor | int, samples: int, device: torch.device) -> Tensor:
        """Return the unpruned column of every slot once `coming` (columns, or a number of next columns) is added.

        Shape: (samples, slots) int64, −1 for a pad.
        """
        if isinstance(coming, int):
            coming = torch.arange(self.seen, self.seen + coming, device=device).expand(samples, -1)
        if self.seen == 0:
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
        first = self.base if self.window_columns is None else self.window_columns
        if coming is None and self.window_columns is None and (self.shift is None or not self.windowed):
            return None

        def count() -> Tensor:
            like = next(part for part in (coming, first, self.shift) if part is not None)
            tail = torch.arange(self.base_end, self.seen, device=like.device).expand(len(like), -1)
            if self.shift is not None:
                tail = tail - self.shift.to(like.device)[:, None]
            return torch.cat([part for part in (first, tail, coming) if part is not None], dim=1)

        return self._memo.once(count, "counted", first, self.base_end, self.seen, self.shift, coming)

    def values_of(self, name: str, coming: Tensor | None = None, rows: int = 0) -> Tensor | None:
        """Return a column at every slot, and at `rows` rows that are added: (samples, slots). None: it is 0 everywhere.

        `coming` are its values at these, (samples, rows); None: 0.
        """
        own, tail = self.beside.get(name), self.seen - self.base_end
        like = coming if own is None else own
        if like is None:
            return None

        def join() -> Tensor:
            first = like.new_zeros(len(like), 0 if self.base is None else self.base.shape[1]) if own is None else own
            last = like.new_zeros(len(like), rows) if coming is None else coming
            return torch.cat((first, like.new_zeros(len(like), tail), last), dim=1)

        return self._memo.once(join, name, own, coming, self.base, tail, rows)

    def _beside_all(self) -> dict[str, Tensor]:
        """Return every column at every slot."""
        every = {name: self.values_of(name) for name in self.beside}
        return {name: values for name, values in every.items() if values is not None}

    @property
    def facts(self) -> tuple[Any, ...]:
        """What a layer's arguments depend on. Layers whose facts are the same objects hold the same columns."""
        counted = self.shift, self.window_columns, self.windowed
        return self.base, self.base_end, self.seen, self.ragged, *counted, *self.beside.values()

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
        if window_columns is not None:
            # Joined now, while the tail is counted by the shift of earlier turns.
            window_columns, self.windowed = self.window_slots(window_columns), True
        self._announced = Coming(columns, span, ragged, window_columns, disorder, beside)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, (samples, heads, rows, head size), and return all.

        Raises:
            SessionError: If a pruned layer is used outside `foveate.drop`.
        """
        if self.reads is not None and self.reads._announced is not None:
            self.seen += self.reads._announced.span
            return self.reads.update(key_states, value_states)
        if self._announced is None:  # limited reads end outside the context
            self.settle()
        if self._announced is None and self._pruned:
            guards.refuse_pruned_cache_outside()
        self._order = None
        coming = self._announced or Coming(None, key_states.shape[-2])
        columns, span = coming.columns, coming.span
        self._inside, self._announced = self._announced is not None, None
        came, rows = key_states.shape[-2], span if columns is None else columns.shape[1]
        if came != rows:
            raise unsupported(f"stores {came} rows in a layer of the cache where its decoder layer ran on {rows}")
        if columns is not None:
            names = {*self.beside, *coming.beside}
            joined = {name: self.values_of(name, coming.beside.get(name), columns.shape[1]) for name in names}
            self.beside = {name: values for name, values in joined.items() if values is not None}
            key = "joined", columns, self.base, self.base_end, self.seen
            self.base = self._memo.once(lambda: self.columns(columns, len(columns), columns.device), *key)
            self.base_end = self.seen + span
            self.ragged |= coming.ragged
            self.window_columns, self.disorder = coming.window_columns, self.disorder or coming.disorder
            self._pruned = True
        self.seen += span
        self._append(key_states, value_states)
        keys, values = self.states  # behind a shared head a copy, freed when the layer has attended
        if self.lends:
            self.returned, self.returned_window = self.columns(0, len(keys), keys.device), self.window_slots()
        return keys, values

    def update_indexer(self, states: Tensor) -> Tensor:
        """Return a zero index over all slots. Rows pick every slot, so the values do not matter and nothing is stored.

        Args:
            states: The index of the new rows, (samples, rows, size).

        Raises:
            SessionError: Outside `foveate.drop`, where rows may pick only some slots.
        """
        if not self._inside:
            guards.refuse_pruned_cache_outside()
        return states.new_zeros(len(states), (self.reads or self).slots, states.shape[-1])

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        """Append rows. From the second step on, rows of a long layer are written into a room."""
        coming, keys, values = key_states.shape[-2], self.keys, self.values
        grows = coming <= MOST_STEP and self.window is None and not torch.is_grad_enabled()
        room = self._room if grows and self._room is not None and self._room.serves(self) else None
        if room is None or coming > room.free:
            again = grows and id(keys) == self._grown and keys.shape[-2] >= LONG  # unchanged since the previous step
            room = Room(keys, values) if again else None
        self._room = room
        if room is None:
            super().update(key_states, value_states)
        else:
            self.keys, self.values = room.put(key_states, value_states)
        self._grown = id(self.keys)

    def leave_room(self) -> None:
        """Hold rows that no other layer's will replace."""
        self.__dict__ = self.__getstate__()

    # -- a part that steps read ----------------------------------------------------------------------------------------

    def read(self, chosen: "Chosen") -> None:
        """Let steps read only these slots, and the rows added since reading was first limited."""
        reads = copy.copy(self)
        reads.window_columns = chosen.of_columns(self.window_slots())
        reads.beside = chosen.of_all(self._beside_all())
        reads._keep_slots(chosen)
        reads._put_behind(self.reads)
        reads.base = chosen.base.to(self.keys.device)
        reads.kinds, reads.memory, reads.held = None, {}, chosen.counts
        reads.base_end = self.seen if self.reads is None else self.reads.base_end
        reads.reads, self.reads = None, reads

    def settle(self) -> None:
        """Stop limiting reads: append the rows added meanwhile to the frozen ones, and read all."""
        self._put_behind(self.reads)
        self.reads, self.memory = None, {}

    def _put_behind(self, reads: "PrunedLayer | None") -> None:
        """Append the rows that were added since reading was first limited: the last rows of `reads`."""
        if reads is None or reads.seen == reads.base_end:
            return
        rows = reads.seen - reads.base_end
        self.keys = torch.cat((self.keys, reads.keys[..., -rows:, :]), dim=-2)
        self.values = torch.cat((self.values, reads.values[..., -rows:, :]), dim=-2)
        self._room = None

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
        own = self.keys.shape[-2] if self.is_initialized else 0
        if self.head is None:
            return own
        return own + self.head[0].shape[-2]

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

    def share(self, samples: int) -> None:
        """Let `samples` samples continue from the rows of the single one, which are stored once.

        `base` and `shift` must already be of that many samples. Not for layers with a window, whose rows leave.
        """
        self.head, self._room = (self.keys, self.values), None
        self.keys, self.values = (rows[..., :0, :].repeat_interleave(samples, dim=0) for rows in self.head)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._follow(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.counted = None
        self._follow(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.counted = None
        self._follow(lambda tensor: tensor[indices.to(tensor.device)])

    def _follow(self, change: Change) -> None:
        """Apply a change of the samples to keys, values and everything with the samples in front."""
        for name in (*STORED, *FOLLOWING):
            setattr(self, name, on_tensors(getattr(self, name), change))
        self._room = None
        if self.reads is not None:
            self.reads._follow(change)

    # -- slots that go -------------------------------------------------------------------------------------------------

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` unpruned columns (a negative number, as in transformers)."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop takes a negative number, minus the number of tokens to remove; got {tokens_to_remove}."
            )
        tokens_to_remove = int(tokens_to_remove)  # transformers 5.16 passes a tensor
        end = self.seen + tokens_to_remove
        if self.alive is not None:
            self.alive = self.alive[:, :end]
        if self.kinds is not None and end < self.kinds.shape[1]:  # part of the prompt is removed
            self.settle()
        elif self.reads is not None:
            self.reads.crop(tokens_to_remove)
            self.seen = end
            return
        if self.head is not None and -tokens_to_remove > self.keys.shape[-2]:
            raise UnsupportedError(
                f"Only the {self.keys.shape[-2]} tokens behind this cache's shared beginning can be removed. Remove "
                "fewer, or start with a new cache."
            )
        from_tail = min(-tokens_to_remove, self.seen - self.base_end)
        if from_tail and self._room is not None and self._room.gives_back(self, from_tail):
            self.keys, self.values = self._room.rows()
        elif from_tail:
            self.keys = self.keys[..., :-from_tail, :]
            self.values = self.values[..., :-from_tail, :]
        if self.base is not None and end < self.base_end:  # samples lose different numbers of the first slots
            stays = (self.base < end) & (self.base >= 0)
            counts = stays.sum(dim=1).tolist()
            chosen = Chosen.exactly(self.base, stays, counts)
            self.window_columns = chosen.of_columns(self.window_columns)
            self.beside = chosen.of_all(self.beside)
            self._keep_slots(chosen)
            self.base_end = end
        self.seen = end

    def forget(self, start: int, end: int, turn: Callable[[Tensor, int], Tensor] | None, positions: int | None) -> None:
        """Remove the slots of some columns of one sample, and shift the columns after them down.

        Args:
            start, end: Range of the columns.
            turn: Rotates keys, (1, heads, slots, head size), back by a number of positions; None: the layer has no
                RoPE.
            positions: How many positions later keys shift; None: as many as the columns had on this layer.
        """
        size, device = end - start, self.keys.device
        alike = "forgotten", self.base, self.base_end, self.seen, start, end
        first, last, base = self._memo.once(lambda: self._without(start, end, device), *alike)
        counted = self.window_slots()
        if counted is not None:  # a window counts on from what is left
            gone = size if self.shift is None else last - first
            self.window_columns = torch.cat((counted[:, :first], counted[:, last:] - gone), dim=1)
        self.beside = {
            name: torch.cat((values[:, :first], values[:, last:]), dim=1) for name, values in self._beside_all().items()
        }
        back = positions
        if self.shift is not None:
            back = last - first
            self.shift = self.shift - size + back
        later = self.keys[..., last:, :]
        if turn is not None and later.shape[-2]:
            later = turn(later, size if back is None else back)
        self.keys = torch.cat((self.keys[..., :first, :], later), dim=-2)
        self.values = torch.cat((self.values[..., :first, :], self.values[..., last:, :]), dim=-2)
        for name in ("kinds", "alive"):
            columns = getattr(self, name)
            if columns is not None:
                setattr(self, name, torch.cat((columns[:, :start], columns[:, end:]), dim=1))
        self.seen -= size
        if base is not None:
            self.base, self.base_end = base, self.seen
        self.counted = self._room = None

    def _without(self, start: int, end: int, device: torch.device) -> tuple[int, int, Tensor | None]:
        """Return the slots of the columns from start to end, first and one past the last, and the base without them."""
        if self.base is None and self.base_end == 0:
            return start, end, None
        columns = self.columns(0, 1, device)
        first, last = torch.stack(((columns < start).sum(), (columns < end).sum())).tolist()
        return first, last, torch.cat((columns[:, :first], columns[:, last:] - (end - start)), dim=1)

    def keep(self, wanted: Tensor, counts: Sequence[int]) -> None:
        """Keep only some of the rows that came last.

        Layers that hold the same columns and get the same tensor share the computation.

        Args:
            wanted: (samples, rows) bool, in the order they came.
            counts: How many of them each sample has.
        """
        rows = min(wanted.shape[1], self.slots)  # the window may have evicted the first of them
        earlier = self.slots - rows  # slots of earlier turns; all of them stay

        def choose() -> Chosen:
            columns = self.columns(0, wanted.shape[0], wanted.device)
            if self._order is not None:  # the window may have evicted any of them
                place = self._order - (self._before - wanted.shape[1])  # below 0: of an earlier turn
                stays = (place < 0) | wanted.gather(1, place.clamp(min=0))
                return Chosen.of(columns, 0, stays & (columns >= 0), stays.shape[1], ragged=True)
            stays = wanted[:, wanted.shape[1] - rows :] & (columns[:, earlier:] >= 0)  # (samples, rows)
            most = min(rows, max(counts))
            even = rows == wanted.shape[1] and min(counts) == most
            return Chosen.of(columns, earlier, stays, most, ragged=not even or (earlier > 0 and self.ragged))

        alike = "kept", wanted, self.base, self.base_end, self.seen, self.keys.shape[-2], self.ragged, self._order
        chosen, counted = self._memo.once(choose, *alike), self.window_slots()
        self.window_columns = self._memo.once(lambda: chosen.of_columns(counted), "kept to count", chosen, counted)
        every = self._beside_all()
        self.beside = self._memo.once(lambda: chosen.of_all(every), "kept beside", chosen, *every.values())
        self.base_end, self._pruned = self.seen, True
        self._keep_slots(chosen)

    def reset(self) -> None:
        self.keys, self.values, self.is_initialized = None, None, False  # a copy may read the rows: no zeros into them
        self.seen = 0
        self.base, self.base_end, self.ragged, self.disorder = None, 0, False, False
        self.window_columns = self.shift = self.head = self._room = self.reads = self.kinds = self.alive = None
        self.memory, self.beside = {}, {}
        self._announced, self._pruned = None, False

    def _keep_slots(self, chosen: "Chosen") -> None:
        """Keep these slots and no others."""
        self.keys, self.values = map(chosen.of_states, self.states)
        self.base, self.ragged, self.head, self._room = chosen.base, chosen.ragged, None, None


class WindowedLayer(PrunedLayer):
    """A `PrunedLayer` whose rows see a sliding window.

    It keeps at most `window − 1` slots between calls, as transformers' own does: no later row sees more.

    Attributes:
        record_past: Whether slots outside the window are kept until `crop`.
    """

    window: int

    def __init__(self, layer: DynamicSlidingWindowLayer, memo: Memo | None = None) -> None:
        super().__init__(layer, memo)
        self.window = layer.sliding_window
        self.record_past: bool = getattr(layer, "record_past", False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Refuse a layer that an older foveate pickled after dropping: its window counted other columns."""
        if state.get("base") is not None and "window_columns" not in state:
            raise SessionError(
                "This cache was saved by an older foveate, whose sliding windows counted stored tokens after dropping. "
                "Make it anew from the prompt."
            )
        self.__dict__.update(state)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As `PrunedLayer.update`. The rows that come see all slots that were there before."""
        keys, values = super().update(key_states, value_states)
        if self.waits:
            return keys, values
        if not self.record_past:
            self._evict()
        elif not self._inside:  # outside the context, masks have the window's size
            reach = self.window - 1 + key_states.shape[-2]
            return keys[..., -reach:, :], values[..., -reach:, :]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the model's own masks cover, and how many come before them."""
        before = max(0, self.seen - self.window + 1)
        return self.seen - before + query_length, before

    def activate_past_recording(self) -> None:
        """Keep slots outside the window until `crop`, so that tokens can be taken back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """As `PrunedLayer.crop`. Without `record_past`, only while the window has discarded nothing."""
        if tokens_to_remove < 0 and not self.record_past and self.seen >= self.window:
            raise UnsupportedError(
                f"A layer with a sliding window of {self.window} tokens has discarded all earlier tokens, so the cache "
                "cannot be cropped. Call activate_past_recording on the cache before the prompt."
            )
        super().crop(tokens_to_remove)
        self._evict()

    def count_anew(self, rows: int, shift: Tensor) -> None:
        """After `keep`: count the last `rows` slots one behind the other, up to a column that is `shift`, (samples,),
        before the sequence's end."""
        assert self.base is not None
        counted = self.base if self.window_columns is None else self.window_columns

        def count() -> Tensor:
            anew = torch.arange(-rows, 0, device=shift.device) + self.seen - shift[:, None]
            return torch.cat((counted[:, : counted.shape[1] - rows], anew), dim=1)

        self.window_columns = self._memo.once(count, "counted anew", counted, rows, self.seen, shift)
        self.windowed = True

    def release(self) -> None:
        """Remove slots that the layer has waited to remove."""
        if self.waits and not self.record_past:
            self._evict()
        self.waits = False

    def _evict(self) -> None:
        """Remove slots that no later row sees: all but the last `window − 1`.

        Slots ascend in columns, so the earlier ones are outside the window in every sample. In disorder, those are that
        have the lowest of the columns that the window counts.
        """
        gone = self.keys.shape[-2] - (self.window - 1) if self.is_initialized else 0
        if gone <= 0:
            return
        base, counted = self.base, self.window_columns
        held = 0 if base is None else base.shape[1]
        if base is not None and counted is not None and self.disorder and gone < held:
            self._evict_lowest(base, counted, gone)
            return
        self.keys = self.keys[..., gone:, :]
        self.values = self.values[..., gone:, :]
        if base is not None and gone < held:
            self.base = self._without_first(base, gone)
            if counted is not None:
                self.window_columns = self._without_first(counted, gone)
            self.beside = {name: self._without_first(values, gone) for name, values in self.beside.items()}
        else:
            self.base, self.ragged, self.window_columns, self.disorder, self.beside = None, False, None, False, {}
            self.base_end += gone - held

    def _without_first(self, values: Tensor, gone: int) -> Tensor:
        return self._memo.once(lambda: values[:, gone:], "without first", values, gone)

    def _evict_lowest(self, base: Tensor, counted: Tensor, gone: int) -> None:
        """Remove the `gone` slots with the lowest columns that the window counts, pads first. The tail has none."""
        total = self.keys.shape[-2]

        def choose() -> Chosen:
            order = counted.masked_fill(base < 0, -1).sort(dim=1, stable=True).indices[:, gone:].sort(dim=1).values
            tail = torch.arange(base.shape[1], total, device=order.device).expand(len(order), -1)
            return Chosen(base.gather(1, order), torch.cat((order, tail), dim=1), self.ragged)

        chosen = self._memo.once(choose, "lowest", base, counted, gone, total, self.ragged)
        in_base = chosen.order[:, : chosen.base.shape[1]]
        self.window_columns = self._memo.once(lambda: counted.gather(1, in_base), "lowest counted", chosen, counted)
        before = self.beside
        gather = lambda: {name: values.gather(1, in_base) for name, values in before.items()}  # noqa: E731
        self.beside = self._memo.once(gather, "lowest beside", chosen, *before.values())
        self._keep_slots(chosen)
        self._order, self._before = chosen.order, total


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which of a layer's slots stay, or are read.

    Attributes:
        base: (samples, slots) int64, their columns, −1 for a pad.
        order: (samples, slots) int64, their current indices.
        ragged: Whether any may be a pad.
        counts: How many each sample has, if known.
    """

    base: Tensor
    order: Tensor
    ragged: bool
    counts: tuple[int, ...] | None = None

    @classmethod
    def exactly(cls, columns: Tensor, stays: Tensor, counts: Sequence[int]) -> Self:
        """Choose these slots, (samples, slots) bool. `columns` are those of all slots, `counts` the sums of `stays`."""
        chosen = cls.of(columns, 0, stays, max(counts), ragged=min(counts) < max(counts))
        return replace(chosen, counts=tuple(counts))

    @classmethod
    def of(cls, columns: Tensor, earlier: int, stays: Tensor, most: int, ragged: bool) -> Self:
        """Keep the first `earlier` slots, and those of the others that stay, padded on the left.

        Args:
            columns: (samples, slots) int64, the columns of all slots.
            earlier: How many slots at the start all stay.
            stays: (samples, other slots) bool.
            most: An upper bound of how many of these stay in any sample.
            ragged: Whether any chosen slot may be a pad.
        """
        rows = stays.shape[1]
        # A stable sort of 0s and 1s moves the slots that stay to the end, in order: stays 1 0 1 gives 1 0 2.
        order = torch.sort(stays.long(), dim=1, stable=True).indices[:, rows - most :]
        pads = ~stays.gather(1, order)  # (samples, most)
        order = order + earlier
        if earlier:
            first = torch.arange(earlier, device=order.device).expand(len(order), -1)
            order = torch.cat((first, order), dim=1)
            pads = torch.cat((columns[:, :earlier] < 0, pads), dim=1)
        return cls(columns.gather(1, order).masked_fill(pads, -1), order, ragged)

    def of_columns(self, columns: Tensor | None) -> Tensor | None:
        """Gather columns of the chosen slots from those of all, (samples, slots). None: None."""
        return None if columns is None else columns.gather(1, self.order.to(columns.device))

    def of_all(self, beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather the chosen slots of columns, (samples, slots) each, by name."""
        return {name: values.gather(1, self.order.to(values.device)) for name, values in beside.items()}

    def of_states(self, states: Tensor) -> Tensor:
        """Gather keys or values of the chosen slots from (samples, heads, slots, head size)."""
        order = self.order.to(states.device)
        if len(order) == 1:  # twice as fast
            return states.index_select(2, order[0])
        # Indices (samples, 1, 1), (heads, 1) and (samples, 1, slots) pick (samples, heads, slots, head size).
        samples, heads = (torch.arange(size, device=states.device) for size in states.shape[:2])
        return states[samples[:, None, None], heads[:, None], order[:, None]]


def _behind(head: Tensor, own: Tensor) -> Tensor:
    """Put what all samples share, (1, heads, slots, head size), in front of each sample's own rows."""
    return torch.cat((head.expand(own.shape[0], -1, -1, -1), own), dim=-2)


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


CACHE_LAYERS = (
    DynamicLayer, DynamicSlidingWindowLayer, IndexedLayer, LinearAttentionLayer, DummyLayer, PrunedLayer, WindowedLayer
)  # fmt: skip
"""Kinds of cache layers that may be mixed with pruned ones."""


def refuse_cache(cache: Any) -> None:
    """Refuse a cache whose layers cannot differ in length: static, quantised, offloaded or of an unknown kind."""
    if cache is None:
        return
    kinds = set[type]()
    if isinstance(cache, Cache) and not cache.offloading and getattr(cache.update, "__func__", None) is Cache.update:
        kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    if not kinds or kinds - {*CACHE_LAYERS}:
        names = sorted(kind.__name__ for kind in {type(cache), *kinds} - {*CACHE_LAYERS})
        raise UnsupportedError(
            f"Layers of this cache ({', '.join(names)}) cannot differ in length: it is offloaded, stores rows in its "
            "own way, or has layers of another type. Use a DynamicCache without offloading: leave "
            "cache_implementation unset, or pass DynamicCache(config=model.config)."
        )


def length_of(cache: Any) -> int:
    """Return the number of unpruned tokens in a cache; −1 for static caches, to avoid a host sync."""
    length = cache.get_seq_length()
    return length if isinstance(length, int) else -1


def find_pruned(cache: Any, index: int) -> PrunedLayer | None:
    """Return the cache's pruned layer at `index`; None if none of its tokens were ever dropped."""
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    return layer if isinstance(layer, PrunedLayer) else None


def pruned_layer(cache: Any, index: int) -> PrunedLayer:
    """Return the pruned layer at `index`, replacing the cache's own layer if needed."""
    while len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, PrunedLayer):
        return layer
    memo = next((other._memo for other in cache.layers if isinstance(other, PrunedLayer)), None)
    kind = PrunedLayer if getattr(layer, "sliding_window", None) is None else WindowedLayer
    cache.layers[index] = pruned = kind(layer, memo)
    return pruned
