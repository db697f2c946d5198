"""Each layer: reads its queries and keys for `engine.attending`; finds raters, and computes `Rotary`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.picks import snap
from foveate.core.signals import Attention, Rotary, Signal
from foveate.core.tensors import Memo, on_tensors, without_autocast
from foveate.engine import guards
from foveate.engine.arguments import ids_of, positions_of, scales_queries, window_of
from foveate.engine.attending import RowsReader
from foveate.engine.cache import PrunedLayer, length_of
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.masks import visibility
from foveate.engine.program import ran_note
from foveate.engine.prompt_samples import image_units, sample_unit
from foveate.engine.rows import Rows
from foveate.engine.streams import gather_rows, reduce_argument
from foveate.errors import UnsupportedError
from foveate.families.tap import Tapped, unturning

# -- raters -------------------------------------------------------------------------------------------------------


@without_autocast
def raters_of(rows: Rows, member: int, hidden: Tensor) -> Tensor:
    """Return which columns are raters of each image of a sample, (images, columns) bool: see `Attention`.

    `hidden` is the sample's stream that enters the decoder, (columns, width).
    """
    sizes = rows.sizes[member]
    assert sizes is not None  # nothing was cut in the decoder yet
    raters = []
    for unit in image_units(rows.samples[member], sizes):
        words, _ = rows.text_behind(member, unit)
        none = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        if len(unit) and len(words):
            columns = rows.columns[member][unit.rows]
            real = words > columns[-1]
            alike = hidden[columns].float() @ hidden[words].float().T  # (rows, words)
            shares = alike.masked_fill(~real, float("-inf")).softmax(dim=1).mean(dim=0)
            above = (shares > shares.sum() / real.sum()) & real
            none = none.scatter(0, words, torch.where(above.any(), above, real))
        raters.append(none)
    return torch.stack(raters)


# -- rotary embeddings of vision tokens at their original positions ---------------------------------------------------


def note_turns(forward: Forward, call: LayerCall) -> None:
    """Compute `Rotary` for every row, for the stages that read it.

    Args:
        forward: Knows position ids, and the rows that are left.
        call: The call of layer 0, before anything is cut there.
    """
    device = call.hidden.device
    places = _places(forward, call).to(device)  # (axes, samples, columns)
    rows = forward.outcome.on(device)
    for member in rows.members:
        own = places[:, member, rows.positions(member).clamp(min=0)]  # (axes, left)
        means: dict[int, Tensor] = {}  # by frequencies, which layers share
        for layer in forward.program.turned:
            frequencies = forward.family.frequencies(layer)
            assert frequencies is not None  # refused when the method was attached
            if id(frequencies) not in means:
                means[id(frequencies)] = _means_of_turns(own, frequencies.to(device))
            rows.put_note(member, ran_note(Rotary(), layer), means[id(frequencies)])


def _places(forward: Forward, call: LayerCall) -> Tensor:
    """Return positions of all columns of a forward, (axes, samples, columns) int64. A prompt's first token is at 0.

    Padding in front may have been counted in the ids, so it is subtracted. In later turns, one axis continues from the
    tokens of earlier turns. Several axes (M-RoPE) are the model's own ids, because columns do not determine them.
    """
    ids = ids_of(forward)
    earlier: int | Tensor = 0 if call.cache is None else max(0, length_of(call.cache))
    ids = ids.expand(*ids.shape[:-2], forward.count, -1)
    if ids.dim() > 2 and earlier:
        return ids
    ids = ids.reshape(-1, *ids.shape[-2:])  # (axes, samples, columns)
    first = ids[:, torch.arange(forward.count, device=ids.device), forward.first.to(ids.device)]
    if forward.live is not None:
        earlier = (forward.live[:, : -forward.span] != 0).sum(dim=1, keepdim=True).to(ids.device)
    return ids - first[..., None] + earlier


def _means_of_turns(places: Tensor, frequencies: Tensor) -> Tensor:
    """Mean cosine and mean sine of the rotation angles: (axes, rows) -> (rows, 2)."""
    is_double = places.device.type != "mps"
    dtype = torch.float64 if is_double else torch.float32
    angles = places[..., None].to(dtype) * frequencies.to(dtype)  # (axes, rows, pairs)
    turned = (frequencies != 0).to(dtype)
    means = [(table * turned).sum(dim=-1).mean(dim=0) / turned.sum() for table in (angles.cos(), angles.sin())]
    stacked = torch.stack(means, dim=-1)
    if is_double:
        return snap(stacked)
    return stacked


# -- the model's own layers ---------------------------------------------------------------------------------------


class AttentionReader(RowsReader):
    """Reads the attention of a decoder layer to the rows of a sample, before the layer runs or while it attends.

    Args:
        forward: Knows what is left.
        call: The layer's call, with arguments and cache still those of all arriving rows.
        member: Index of the sample.
        signals: What will be read while the layer attends.
        ahead: Projects queries and keys before the layer runs; None: they are read while it attends.

    Attributes:
        attended: The layer's queries and keys, their scaling, and values; None before it attends.
    """

    attended: tuple[Tensor, Tensor, float, Tensor] | None = None

    def __init__(
        self,
        forward: Forward,
        call: LayerCall,
        member: int,
        signals: Sequence[Signal] = (),
        ahead: "Ahead | None" = None,
    ) -> None:
        family = forward.family
        guards.refuse_recurrent_reading(call.index, family.recurrent, len(family.layers))
        self._forward = forward
        self._call = call
        self._hidden = hidden = call.hidden
        self._family = family
        self._ahead = ahead
        rows = forward.outcome.on(hidden.device).laid_out()
        self._own = slice(member, member + 1)
        self._start = rows.pads(member)
        self._seen = 0  # columns of earlier turns
        super().__init__(rows, member, rows.of_sample(member), hidden.shape[-1], call.index)
        self._softcap = family.softcap(call.module)
        self._trailing = rows.samples[member].trailing
        self._sees = self._visibility()
        # Tables are computed now, while the arguments are those of all rows. Queries and keys read while the layer
        # attends are rotated already; only attention without distance still needs tables.
        self._tables: Any = None
        if ahead is not None or any(getattr(signal, "without_distance", False) for signal in signals):
            self._tables = positions_of(forward, call, rows).get("position_embeddings")

    def _visibility(self) -> Callable[[Tensor], Tensor] | None:
        """Return the model's mask as a function (see `visibility`) over the slots of earlier turns and these rows."""
        call, index, live = self._call, self._call.index, self._forward.live
        slots: Tensor | None = None
        layers, ragged = getattr(call.cache, "layers", ()), False
        stored = layers[index] if index < len(layers) else None
        if stored is not None and stored.is_initialized and stored.get_seq_length():
            past = stored if isinstance(stored, PrunedLayer) else PrunedLayer(stored)
            device, ragged, self._seen = past.keys.device, past.ragged, past.seen
            self._past = past.states[0][self.member]  # with the beginning that samples share
            slots = past.columns(0, len(past.keys), device)[self._own]
            if live is not None:
                # Columns of padding become −1: columns 0 1 2 with padding in front give −1 1 2.
                real = live[self._own].to(device).take_along_dim(slots.clamp(min=0), dim=1) != 0
                slots, ragged = slots.masked_fill(~real, -1), True
        seen = self._seen
        length = seen + self._hidden.shape[1]
        if scales_queries(self._family, index) and not self._family.gathers:  # otherwise the layer itself gets its ids
            most = self._family.text.config.rope_parameters["original_max_position_embeddings"]
            if length > most:  # scores do not include the scale
                raise UnsupportedError(
                    f"Layer {index} scales queries from position {most} on, and foveate's attention scores do not. "
                    f"This prompt has {length} positions. Use a shorter prompt, or a method that reads no attention "
                    "(V2Drop)."
                )
        mask, causal = call.kwargs.get("attention_mask"), call.is_causal
        if mask is None and causal and not ragged:  # no columns are made for nothing
            return None
        keys = self.table.unpruned(seen)[self._own, self._start :]
        if slots is not None:
            keys = torch.cat((slots, keys), dim=1)
        window = None
        if mask is not None:
            earlier = stored if isinstance(stored, PrunedLayer) else None
            window = window_of(self._forward, index, self.table, earlier, seen, self._hidden.device)
        if window is not None:
            window = window.of_sample(self.member, keys.shape[1] - len(self.columns), self._start)
        sample = torch.full_like(keys[:, 0], self.member)
        sees = visibility(mask, sample, keys, seen, length, ragged, causal, window)
        return None if sees is None else lambda rows: sees(rows[None])[0]

    def in_prompt(self, columns: Tensor) -> Tensor:
        """Count columns of the call from the sample's first row, including the columns of earlier turns."""
        live = self._forward.live
        if live is None:
            return super().in_prompt(columns) + self._seen
        return super().in_prompt(columns) + (live[self.member, : -self._hidden.shape[1]] != 0).sum().to(columns.device)

    def _rotated_ones(self, size: int) -> Tensor:
        assert self._tables is not None
        cos, sin = (table[..., self._own, self._start :, :].float() for table in self._tables)
        ones = cos.new_ones(1, len(self.columns), size)
        return self._family.rotate(self._call.module, ones[:, None], (cos, sin))[0, 0]

    def _queries_and_keys(self, asking: Tensor, signal: Attention | None = None, image: int = -1) -> Tapped:
        if self.attended is not None:
            # The layer's own attention has computed them for all its rows.
            query, keys, scaling, _ = self.attended
            count = query.shape[2]
            return Tapped(self._of_rows(query, count)[:, asking], self._of_rows(keys, count), scaling)
        if signal is None:
            return self.project(asking[None], self._own).sample(0)
        assert self._ahead is not None
        return self._ahead.read(self.member, asking, signal, image)

    def before_rope(self, asking: Tensor) -> tuple[Tensor, Tensor]:
        tables = unturning(self._call.module, self._tables)
        queries, keys, _ = self.project(asking[None], self._own, tables).sample(0)
        return queries, keys

    def rows_that_ask(self, signal: Attention, image: int) -> Tensor:
        """Return the rows that ask for a signal of an image, or of all rows if it is −1: (asking,) int64."""
        sample, sizes = self.table.samples[self.member], self.table.sizes[self.member]
        unit = sample_unit(sample, self.table.counts[self.member])
        if image >= 0:
            assert sizes is not None
            unit = image_units(sample, sizes)[image]
        return self._asking(signal, unit, self.vision[unit.rows])[0]

    def project(self, asking: Tensor, samples: slice, tables: Any = None) -> Tapped:
        """Compute the queries of rows that ask, (samples, asking) int64, and the keys of all rows.

        `samples` are those of the batch for which it is done. Their rows are equally many. They turn by `tables`; None:
        by the rows' own.
        """
        call, rows = self._call, self.table
        columns, owners = rows.read[samples, self._start :], None if rows.owners is None else rows.owners[samples]
        hidden, more = gather_rows(self._hidden, columns, owners), dict[str, Any]()
        if self._family.gathers:
            arguments = {**call.more, "position_ids": self._ids()}
            source = rows.source.clamp(min=0)[samples, self._start :]
            places = (*self._hidden.shape[:2],), columns, owners, source
            more = {name: reduce_argument(value, *places) for name, value in arguments.items()}
        if call.streams is not None:
            hidden = call.streams.unfold(hidden)
        # M-RoPE's tables may have its axes in front of the samples.
        turns = self._tables if tables is None else tables
        turns = on_tensors(turns, lambda table: table[..., samples, self._start :, :])
        mixed = self._ahead is not None and self._ahead.mixed
        with torch.autocast(hidden.device.type) if mixed else nullcontext():
            return Tapped(*self._family.queries_and_keys(call.module, hidden, asking, turns, more))

    def _ids(self) -> Any:
        """Position ids of all columns, as the layer gets them."""
        passed = self._call.kwargs.get("position_ids")
        return positions_of(self._forward, self._call, None).get("position_ids", passed)

    def _of_rows(self, heads: Tensor, rows: int) -> Tensor:
        """Select the sample's rows from queries, keys or values of all samples: (heads, rows, size)."""
        heads = heads[self.member, :, -rows:]  # without those of earlier turns, which come first
        if self._forward.outcome.rows is not None:
            return heads[:, self._start :]
        if len(self.columns) < self._hidden.shape[1]:  # the layer's rows are all columns, padding included
            return heads[:, self.columns]
        return heads

    def entering(self) -> Tensor:
        return self._hidden[self.member, self.table.columns[self.member]]

    def values(self) -> Tensor:
        assert self.attended is not None  # read while the layer attends
        query, _, _, values = self.attended
        return self._of_rows(values, query.shape[2])


@dataclass(eq=False)
class Ahead:
    """The readers of a layer that is still to run. If all samples are alike, they are projected at once.

    Attributes:
        forward, call: See `AttentionReader`.
        mixes: Whether the model runs under autocast.
        memo: Readers, queries and keys. They refer to this, so it is replaced when the stages have read.
        mixed: Whether the layer multiplies numbers of several dtypes, which it can do only under autocast.
    """

    forward: Forward
    call: LayerCall
    mixes: bool
    memo: Memo = field(default_factory=Memo)
    mixed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        hidden, weights = self.call.hidden, self.call.module.parameters()
        if self.mixes:
            self.mixed = any(weight.is_floating_point() and weight.dtype != hidden.dtype for weight in weights)

    def reader(self, member: int) -> AttentionReader:
        """Return the reader of a sample."""
        make = partial(AttentionReader, self.forward, self.call, member, ahead=self)
        return self.memo.once(make, member)

    def read(self, member: int, asking: Tensor, signal: Attention, image: int) -> Tapped:
        """Return queries and keys for the rows of a sample that ask for a signal of an image (−1: of all)."""
        table = self.forward.table.laid_out()
        kinds = {
            (length, count, sizes, sample.text_after, sample.text_from)
            for length, count, sizes, sample in zip(
                table.lengths, table.counts, table.sizes, table.samples, strict=True
            )
        }
        if len(kinds) > 1:
            return self.reader(member).project(asking[None], slice(member, member + 1)).sample(0)

        def of_all() -> Tapped:
            every = range(len(table.samples))
            asks = torch.stack([self.reader(each).rows_that_ask(signal, image) for each in every])
            return self.reader(member).project(asks, slice(None))

        return self.memo.once(of_all, signal.rows, signal.sample or 0, image).sample(member)
