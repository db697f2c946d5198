"""Each layer: computes attention rows of only the queries that score, and reduces them to the signals that stages read.

`RowsReader` does so for any host. See `engine.reading` for transformers models.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.attention import attention_rows, mean_of_busiest, nearness
from foveate.core.rank import spread
from foveate.core.signals import Attention, Columns, KeyNorms, Keys, OwnSignal, Pivots, Products, Signal, ValueLikeness
from foveate.core.tensors import BLOCK_NUMBERS, alike, send, without_autocast
from foveate.engine.prompt_samples import Unit
from foveate.engine.rows import Rows, find
from foveate.errors import UnsupportedError
from foveate.families.tap import Tapped

RATERS = "raters"
"""Name of the tensor in `Rows.about` that marks the raters."""
OF_TEXT = ("after", "but_last", "null", "raters")
"""Values of `Attention.rows` for queries in the text behind an image."""


class RowsReader(ABC):
    """Reads signals from queries and keys of a decoder layer at a sample's rows. Each host subclasses it.

    Args:
        table: The rows that are left, of all samples.
        member: Index of the sample.
        columns: (rows,) int64, ascending: the columns of all rows of the sample, text included.
        width: Width of the residual stream.
    """

    def __init__(self, table: Rows, member: int, columns: Tensor, width: int) -> None:
        self.table = table
        self.member = member
        self._columns = columns
        self._width = width
        self._trailing = 0  # rows of padding behind the sample's last token
        self._made_keys: Tensor | None = None
        self._vision = find(table.columns[member], columns)  # index of each vision row among all rows
        self._past: Tensor | None = None
        self._sees: Callable[[Tensor], Tensor] | None = None
        self._softcap: float | None = None

    @abstractmethod
    def _queries_and_keys(self, asking: Tensor, signal: Attention | None = None, image: int = -1) -> Tapped:
        """Return queries of the rows `asking`, (asking,) int64, keys of all rows, and the scaling factor.

        Queries are (heads, asking, head size), keys (key heads, rows, head size). `signal` and `image` (−1: all) say
        what the rows ask for, so that a host may project other samples at once.
        """

    @abstractmethod
    def _rotated_ones(self, size: int) -> Tensor:
        """Return a vector of ones rotated to the position of each row: (rows, head size) float32."""

    def _plain(self, asking: Tensor) -> tuple[Tensor, Tensor]:
        """Return `_queries_and_keys` before RoPE and scaling. A host without them must refuse `Products`."""
        raise NotImplementedError

    def _values(self) -> Tensor:
        """Return values of all rows, (key heads, rows, size). A host without them refuses `ValueLikeness`."""
        raise NotImplementedError

    def _layer_input(self) -> Tensor:
        """Return the layer's input at the vision rows, (rows, width). A host without it refuses `OwnSignal`."""
        raise NotImplementedError

    def in_prompt(self, columns: Tensor) -> Tensor:
        """Convert columns of the call to offsets from the sample's first row. −1 stays below 0."""
        return columns - self._columns[0]

    # -- signals -----------------------------------------------------------------------------------------------

    @without_autocast
    def read(self, signal: Signal, units: Sequence[Unit]) -> Tensor:
        """Return a signal of the units' rows, concatenated: (rows, …) float32; see each signal.

        `Keys`, `KeyNorms` and `Columns` cover all vision rows, whatever the units. `Products` takes one unit: all rows.
        `Pivots` are columns of the text behind each unit, (units, count) int64: those with the largest key norms,
        largest first. If there is less text, they repeat from the first; without text −1.
        """
        if isinstance(signal, Columns):
            return self.in_prompt(self.table.columns[self.member])
        if isinstance(signal, Keys):
            return self._all_keys()[:, self._vision].float().mean(dim=0)
        if isinstance(signal, KeyNorms):
            return self._norms()[self._vision]
        if isinstance(signal, Products):
            return self._products(signal, units[0])
        if isinstance(signal, ValueLikeness):
            return torch.cat([self._likeness_of(signal, unit) for unit in units])
        if isinstance(signal, Pivots):
            return torch.stack([self._pivots_of(signal.count, unit) for unit in units])
        if isinstance(signal, OwnSignal):
            inputs = [self._of_layer(name) for name in signal.of]
            parts = [unit.rows for unit in units if len(unit)]
            return torch.cat([signal.of_rows([part_of[..., part, :] for part_of in inputs]) for part in parts])
        assert isinstance(signal, Attention)
        return self.reduce([signal], units)[signal]

    @without_autocast
    def reduce(self, signals: Sequence[Attention], units: Sequence[Unit]) -> dict[Attention, Tensor]:
        """Compute signals that differ only in how rows are combined. Each attention row is computed once.

        Returns:
            For each signal (rows of the units, concatenated) float32.
        """
        values = [self._of_unit(signals, unit) for unit in units]
        if len(values) == 1:
            return values[0]
        return {signal: torch.cat([value[signal] for value in values]) for signal in signals}

    def _of_unit(self, signals: Sequence[Attention], unit: Unit) -> dict[Attention, Tensor]:
        blocks: Iterable[Tensor] = ()
        if signals[0].rows not in OF_TEXT or unit.text_after != (False,):
            blocks = self._blocks(signals[0], unit)
        values = put_together(signals, blocks)
        for signal, paid in values.items():  # (heads, rows)
            if signal.heads == "busiest":
                values[signal] = mean_of_busiest(paid, signal.busiest)
            else:  # a mean over heads has one entry
                values[signal] = paid[0] if len(paid) == 1 else paid.amax(dim=0)
        if values:
            return values
        zeros = self._vision.new_zeros(len(unit), dtype=torch.float32)
        return dict.fromkeys(signals, zeros)

    def _products(self, signal: Products, unit: Unit) -> Tensor:
        """Compute `Products` of the vision rows; `unit` is all of them: (rows, heads) float32."""
        asking, real = self._text_behind(unit)
        if real is None:
            real = torch.ones_like(asking)
        first, last = signal.leave_out
        place, number = real.cumsum(dim=0), real.sum()  # real 0 1 1 gives place 0 1 2, number 2
        inner = (place > first) & (place <= number - last) & (real != 0)
        asks = torch.where(inner.any(), inner, real != 0)[None, :, None]
        queries, keys = self._plain(asking)  # (heads, asking, size), (key heads, all rows, size)
        number = asks.sum(dim=1).clamp(min=1)
        mean = (queries.float() * asks).sum(dim=1) / number  # (heads, size): the products are linear in it
        keys = keys[:, self._vision].float()
        grouped = mean.view(len(keys), -1, mean.shape[-1])  # (key heads, heads of each, size)
        paid: Tensor = (keys @ grouped.mT).transpose(0, 1).flatten(1)  # (rows, heads)
        return paid / math.sqrt(mean.shape[-1])

    def _of_layer(self, name: str) -> Tensor:
        """Return an input of an `OwnSignal`: (heads, rows, size), or (rows, width)."""
        if name == "hidden":
            return self._layer_input()
        if name == "queries":
            return self._queries_and_keys(self._vision).queries
        heads = self._all_keys() if name == "keys" else self._values()
        return heads[:, self._vision]

    def _likeness_of(self, signal: ValueLikeness, unit: Unit) -> Tensor:
        own = self._vision[unit.rows]
        if unit.text_after == (False,) or not len(unit):
            return own.new_zeros(len(own), 2, dtype=torch.float32)
        asking, real = self._text_behind(unit)
        asks = torch.ones_like(asking) if real is None else real.long()
        # Leave out the first `skip` asking rows, unless none is left then: asks 0 1 1 1 with skip 1 gives 0 0 1 1.
        skipped = asks * (asks.cumsum(dim=0) > signal.skip)
        asks = torch.where(skipped.any(), skipped, asks)
        of_text = self._sum_of_likeness(signal, own, asking, asks)
        number = asks.sum()
        first = of_text / number.clamp(min=1)
        # The rows most alike to the text ask too, for the second column.
        seeds = first.sort(descending=True, stable=True).indices[: signal.seed_count(len(unit))]
        of_seeds = self._sum_of_likeness(signal, own, own[seeds], torch.ones_like(seeds))
        return torch.stack((first, (of_text + of_seeds) / (number + len(seeds))), dim=-1) * (number > 0)

    def _sum_of_likeness(self, signal: ValueLikeness, own: Tensor, asking: Tensor, asks: Tensor) -> Tensor:
        """Sum the likeness of rows that ask, (asking,) int64 with weights 0 or 1, to an image's rows."""
        with_whom = values = self._values()
        visible: Callable[[slice], Tensor] | None = None
        if signal.among == "image":
            with_whom = values[:, own]
        elif (padding := self.table.samples[self.member].padding) is not None:  # hide it; every row sees the same
            seen = ~torch.isin(self._columns, send(padding, own.device))[None, None]
            visible = lambda _: seen  # noqa: E731
        total, done = torch.zeros_like(own, dtype=torch.float32), 0
        for block in attention_rows(
            values[:, asking],
            with_whom,
            1 / math.sqrt(values.shape[-1]),
            visible=visible,
            block=max(BLOCK_NUMBERS, len(self._columns) * self._width),
        ):
            alike = block.mean(dim=0)  # (some, rows compared with)
            if signal.among != "image":
                alike = alike[:, own]
            total += (alike * asks[done : done + len(alike), None]).sum(dim=0)
            done += len(alike)
        return total

    def _pivots_of(self, count: int, unit: Unit) -> Tensor:
        none = self._columns.new_full((count,), -1)
        if unit.text_after == (False,) or not len(unit):
            return none
        asking, real = self._text_behind(unit)
        if not len(asking):
            return none
        norms, number = self._norms()[asking], torch.full_like(asking[:1], len(asking))
        if real is not None:
            norms, number = norms.masked_fill(~real, -1), real.sum(dim=0, keepdim=True)
        order = norms.sort(descending=True, stable=True).indices
        places = torch.arange(count, device=order.device) % number.clamp(min=1)  # 4 pivots of 3 rows: 0 1 2 0
        return torch.where(number > 0, self._columns[asking[order[places]]], none)

    def _norms(self) -> Tensor:
        """L1 norms of the keys of all rows: (rows,) float32."""
        keys = self._all_keys()
        wide = torch.promote_types(keys.dtype, torch.float32)  # torch refuses to narrow
        norms: Tensor = torch.linalg.vector_norm(keys, ord=1, dim=(0, 2), dtype=wide)
        return norms.float()

    def _all_keys(self) -> Tensor:
        """Return keys of all rows after RoPE, (key heads, rows, head size)."""
        if self._made_keys is None:
            self._made_keys = self._queries_and_keys(self._vision[:0]).keys
        return self._made_keys

    # -- attention rows ----------------------------------------------------------------------------------------

    def _blocks(self, signal: Attention, unit: Unit) -> Iterator[Tensor]:
        """Yield the attention that asking rows pay to a unit's rows, in blocks of asking rows, in order.

        Each block is (heads, some asking rows, rows) float32, with a single head if their mean is wanted.
        """
        columns = self._vision[unit.rows]
        if not len(unit):  # an image that lost all its tokens
            return
        asking, real = self._asking(signal, unit, columns)
        if not len(asking):
            return
        query, keys, scaling = self._queries_and_keys(asking, signal, unit.image)
        self._made_keys, before = keys, 0
        if self._past is not None:
            if self._past.shape[::2] != keys.shape[::2]:
                raise UnsupportedError(
                    "This model caches latents instead of keys, so attention cannot be read for a picture in a later "
                    "turn. Use a method that reads no attention (V2Drop), or start with an empty cache."
                )
            before = self._past.shape[1]
            keys = torch.cat((self._past.to(keys.dtype), keys), dim=1)  # (heads, slots, head size)
        both_ways = signal.both_ways and signal.rows == "vision"
        visible: Callable[[slice], Tensor] | None = None
        if self._sees is not None:
            visible = self._visible(self._sees, asking, columns if both_ways else None, keys.shape[1], before)
        elif signal.rows != "last" or self._trailing:  # else the last row, which sees all
            last = (columns[-1:].expand_as(asking) if both_ways else asking) + before
            slots = torch.arange(keys.shape[1], device=keys.device)
            visible = lambda some: slots <= last[some, None]  # noqa: E731
        blocks = attention_rows(
            query,
            keys,
            scaling,
            visible=visible,
            block=max(BLOCK_NUMBERS, len(self._columns) * self._width),  # less memory than the layer itself needs
            softcap=self._softcap,
        )
        done, places = 0, columns + before
        turned = self._rotated_ones(query.shape[-1]) if signal.without_distance else None
        for heads in blocks:  # (heads, some, slots)
            if signal.heads == "mean":
                heads = heads.mean(dim=0, keepdim=True)
            paid = heads[..., places]  # (heads, some, rows)
            del heads  # free it before the next block is computed
            some = slice(done, done + paid.shape[1])
            if turned is not None:
                paid = paid / nearness(turned[asking[some]], turned[columns])
            yield paid if real is None else paid * real[some, None]
            done += paid.shape[1]

    def _asking(self, signal: Attention, unit: Unit, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows that ask for a signal of a unit whose rows are `columns`, (rows,) int64.

        Returns:
            (asking,) int64, and which are real, bool; None if all are.
        """
        if signal.rows == "vision":
            rows = len(columns)
            if signal.sample is None or signal.sample >= rows:
                return columns, None
            return columns[spread(rows, signal.sample, columns.device)], None
        if signal.rows == "last":  # padding may follow it
            rows = len(self._columns) - self._trailing
            return torch.arange(rows - 1, rows, device=columns.device), None
        asking, real = self._text_behind(unit)
        if not len(asking):
            return asking, real
        # Real rows come after the others.
        if signal.rows == "null":
            if real is None:
                return asking[:1], None
            place = (len(asking) - real.sum(dim=0, keepdim=True)).clamp(max=len(asking) - 1)
            return asking[place], real.any(dim=0, keepdim=True)
        if signal.rows == "but_last":
            return asking[:-1], None if real is None else real[:-1]
        if signal.rows == "raters":
            is_rater = self.table.about[self.member][RATERS][unit.image, self._columns[asking]]
            return asking, is_rater if real is None else is_rater & real
        return asking, real

    def _text_behind(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        """Return text rows behind a unit, and which of them are real; None if all are.

        If text stands between an image's tokens, the host does not know how much of it is behind those that are left.
        """
        words, exact = self.table.text_behind(self.member, unit)
        rows = find(words, self._columns)
        return rows, None if exact else rows > self._vision[unit.rows.stop - 1]

    def _visible(
        self, sees: Callable[[Tensor], Tensor], asking: Tensor, image: Tensor | None, slots: int, before: int
    ) -> Callable[[slice], Tensor]:
        """Return a function that says which slots asking rows see: by the mask, plus all of `image` if it is given."""
        columns = self._columns[asking]
        if image is None:
            return lambda some: sees(columns[some])
        places = torch.arange(slots, device=asking.device) - before
        inside = (places >= image[0]) & (places <= image[-1])  # (slots,)
        return lambda some: sees(columns[some]) | inside


def put_together(signals: Sequence[Attention], blocks: Iterable[Tensor]) -> dict[Attention, Tensor]:
    """Combine attention rows, block by block.

    Args:
        signals: The signals. They differ only in how rows are combined.
        blocks: (…, some rows, tokens) each. Samples and heads may be in front.

    Returns:
        The signals, (…, tokens) each; empty if there are no rows.
    """
    over, renormalises = {signal.over for signal in signals}, signals[0].renormalise
    # Samples with less text than others are filled up with rows of zeros, which must not count as asking rows.
    filled = signals[0].rows in OF_TEXT and (renormalises or "mean" in over)
    of_rows: dict[str, Tensor] = {}  # "sum" and "max" over rows
    asking: int | Tensor = 0
    for block in blocks:
        sums = block
        if filled or renormalises:
            sums = block.sum(dim=-1, keepdim=True)
        if "mean" in over:
            asking = asking + ((sums > 0).sum(dim=(-2, -1)) if filled else block.shape[-2])
        if renormalises:
            block = block / (sums.clamp(min=torch.finfo(torch.float32).tiny) if filled else sums)
        if over - {"max"}:
            total = block.sum(dim=-2)
            of_rows["sum"] = of_rows["sum"] + total if "sum" in of_rows else total
        if "max" in over:
            highest = block.amax(dim=-2)
            of_rows["max"] = torch.maximum(of_rows["max"], highest) if "max" in of_rows else highest
    values = {}
    for signal in signals if of_rows else ():
        value = of_rows["max" if signal.over == "max" else "sum"]
        if signal.over == "mean" and isinstance(asking, Tensor):
            value = value / asking.clamp(min=1)[..., None]
        elif signal.over == "mean":
            value = value / asking
        elif signal.over == "share":
            value = value / value.sum(dim=-1, keepdim=True)
        values[signal] = value
    return values


def streams(signals: Sequence[Attention]) -> list[list[Attention]]:
    """Group signals that are computed from the same attention rows."""
    kinds = alike(replace(signal, over="sum") for signal in signals)
    return [[signals[place] for place in places] for places in kinds]
