"""Each layer: attention rows of the queries that score, and of no others, reduced to what stages read of them.

`RowsReader` reads them for whoever runs the decoder: see `engine.reading` for models of transformers.
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
from foveate.core.tensors import BLOCK_NUMBERS, alike, take_along
from foveate.engine.buckets import Bucket
from foveate.engine.samples import Unit
from foveate.errors import UnsupportedError

RATERS = "raters"
"""The name under which a bucket remembers them."""
OF_TEXT = ("after", "but_last", "null", "raters")
"""Rows that ask and stand behind an image."""


class RowsReader(ABC):
    """Reads what queries and keys of a decoder layer come to at the rows of a bucket. Who runs the model makes these.

    Args:
        bucket: The samples, and their rows that are left.
        columns: (samples, rows) int64, ascending: the columns of all rows of these samples, text among them.
        width: Of the residual stream.
    """

    def __init__(self, bucket: Bucket, columns: Tensor, width: int) -> None:
        self._bucket = bucket
        self._columns = columns
        self._width = width
        self._made_keys: Tensor | None = None
        # Which rows are vision tokens: the last of equal columns, since pads in front repeat the first row.
        self._vision = torch.searchsorted(columns.contiguous(), bucket.columns, right=True) - 1
        self._past: Tensor | None = None
        self._sees: Callable[[Tensor], Tensor] | None = None
        self._softcap: float | None = None

    @abstractmethod
    def _queries_and_keys(self, asking: Tensor) -> tuple[Tensor, Tensor, float]:
        """Queries of the rows that ask, (samples, rows) int64, keys of all, and the scaling of their product."""

    @abstractmethod
    def _turned_ones(self, size: int) -> Tensor:
        """A vector of ones, turned by RoPE to the position of each row: (samples, rows, head size) float32."""

    def _plain(self, asking: Tensor) -> tuple[Tensor, Tensor]:
        """As `_queries_and_keys`, before RoPE and without the scaling; who cannot make these refuses `Products`."""
        raise NotImplementedError

    def _values(self) -> Tensor:
        """Values of all rows, (samples, key heads, rows, size); who has none refuses `ValueLikeness`."""
        raise NotImplementedError

    def _entered(self) -> Tensor:
        """What entered the layer at the bucket's rows, (samples, rows, width); who has it not refuses `OwnSignal`."""
        raise NotImplementedError

    def _live(self) -> Tensor | None:
        """Nonzero where a column is no padding, (samples, columns); None if all are."""
        return None

    def in_prompt(self, columns: Tensor) -> Tensor:
        """Columns of the call, (samples, any) int64, counted from the sample's first row; −1 stays below 0."""
        return columns - self._columns[:, :1]

    # -- signals -----------------------------------------------------------------------------------------------

    def read(self, signal: Signal, units: Sequence[Unit]) -> Tensor:
        """A signal of these units' rows, one behind the other: (samples, rows, …), see the signal; float32.

        `Keys`, `KeyNorms` and `Columns` are of all rows of the bucket, whatever the units; for `Products` there is one,
        all rows of a sample.
        `Pivots` are columns of the text behind each unit, (samples, units, count) int64: those with the largest key
        norms, the largest first, from the first on again where there is less text, −1 where there is none.
        """
        if isinstance(signal, Columns):
            return self.in_prompt(self._bucket.columns)
        if isinstance(signal, Keys):
            keys = take_along(self._all_keys(), self._vision[:, None, :, None], dim=2)
            return keys.float().mean(dim=1)
        if isinstance(signal, KeyNorms):
            return self._norms().gather(1, self._vision)
        if isinstance(signal, Products):
            return self._products(signal, units[0])
        if isinstance(signal, ValueLikeness):
            return torch.cat([self._likeness_of(signal, unit) for unit in units], dim=1)
        if isinstance(signal, Pivots):
            return torch.stack([self._pivots_of(signal.count, unit) for unit in units], dim=1)
        if isinstance(signal, OwnSignal):
            samples = zip(*map(self._of_layer, signal.of), strict=True)
            parts = [unit.rows for unit in units if len(unit)]
            rows = [
                [signal.of_rows([part_of[..., part, :] for part_of in sample]) for part in parts] for sample in samples
            ]
            return torch.stack([torch.cat(made) for made in rows])
        assert isinstance(signal, Attention)
        return self.reduce([signal], units)[signal]

    def reduce(self, signals: Sequence[Attention], units: Sequence[Unit]) -> dict[Attention, Tensor]:
        """Signals that differ in nothing but how rows are put together: each row of attention is made once.

        Returns:
            For each signal (samples, rows of these units, one behind the other) float32.
        """
        values = [self._of_unit(signals, unit) for unit in units]
        if len(values) == 1:
            return values[0]
        return {signal: torch.cat([value[signal] for value in values], dim=1) for signal in signals}

    def _of_unit(self, signals: Sequence[Attention], unit: Unit) -> dict[Attention, Tensor]:
        blocks: Iterable[Tensor] = ()
        if signals[0].rows not in OF_TEXT or unit.text_after != (False,):
            blocks = self._blocks(signals[0], unit)
        values = put_together(signals, blocks)
        for signal, paid in values.items():  # (samples, heads, rows)
            if signal.heads == "busiest":
                values[signal] = mean_of_busiest(paid, signal.busiest)
            else:  # of their mean there is one
                values[signal] = paid[..., 0, :] if paid.shape[-2] == 1 else paid.amax(dim=-2)
        if values:
            return values
        zeros = self._vision.new_zeros(len(self._vision), len(unit), dtype=torch.float32)
        return dict.fromkeys(signals, zeros)

    def _products(self, signal: Products, unit: Unit) -> Tensor:
        """What `Products` has of the bucket's rows, `unit` being all of them: (samples, rows, heads) float32."""
        asking, real = self._text_behind(unit)
        if real is None:
            real = torch.ones_like(asking)
        first, last = signal.leave_out
        place, number = real.cumsum(dim=1), real.sum(dim=1, keepdim=True)  # 1 is the first that is real
        inner = (place > first) & (place <= number - last) & (real != 0)
        asks = torch.where(inner.any(dim=1, keepdim=True), inner, real != 0)[:, None, :, None]
        queries, keys = self._plain(asking)  # (samples, heads, asking, size), (samples, key heads, all rows, size)
        number = asks.sum(dim=2).clamp(min=1)
        mean = (queries.float() * asks).sum(dim=2) / number  # (samples, heads, size): the products are linear in it
        keys = take_along(keys, self._vision[:, None, :, None], dim=2).float()
        grouped = mean.view(len(mean), keys.shape[1], -1, mean.shape[-1])  # (samples, key heads, heads of each, size)
        paid: Tensor = (keys @ grouped.mT).transpose(1, 2).flatten(2)  # (samples, rows, heads)
        return paid / math.sqrt(mean.shape[-1])

    def _of_layer(self, name: str) -> Tensor:
        """What an `OwnSignal` is made of, of the bucket: (samples, heads, rows, size), or (samples, rows, width)."""
        if name == "hidden":
            return self._entered()
        if name == "queries":
            return self._queries_and_keys(self._vision)[0]
        heads = self._all_keys() if name == "keys" else self._values()
        return take_along(heads, self._vision[:, None, :, None], dim=2)

    def _likeness_of(self, signal: ValueLikeness, unit: Unit) -> Tensor:
        own = self._vision[:, unit.rows]  # (samples, rows)
        if unit.text_after == (False,) or not len(unit):
            return own.new_zeros(*own.shape, 2, dtype=torch.float32)
        asking, real = self._text_behind(unit)
        if real is None:
            asks = torch.ones_like(asking)
        else:
            asks = (real != 0).long()
        skipped = asks * (asks.cumsum(dim=1) > signal.skip)
        asks = torch.where(skipped.any(dim=1, keepdim=True), skipped, asks)
        of_text = self._sum_of_likeness(signal, own, asking, asks)
        number = asks.sum(dim=1, keepdim=True)
        first = of_text / number.clamp(min=1)
        seeds = first.sort(dim=1, descending=True, stable=True).indices[:, : signal.seeded(len(unit))]
        of_seeds = self._sum_of_likeness(signal, own, own.gather(1, seeds), torch.ones_like(seeds))
        return torch.stack((first, (of_text + of_seeds) / (number + seeds.shape[1])), dim=-1) * (number > 0)[..., None]

    def _sum_of_likeness(self, signal: ValueLikeness, own: Tensor, asking: Tensor, asks: Tensor) -> Tensor:
        """The likeness of rows that ask, (samples, asking) int64 and 0 or 1, to an image's rows, added up."""
        with_whom = values = self._values()
        visible: Callable[[slice], Tensor] | None = None
        if signal.among == "image":
            with_whom = take_along(values, own[:, None, :, None], dim=2)
        else:
            # Rows that are no padding; pads in front repeat the first row.
            last, live = torch.ones_like(self._columns[:, :1], dtype=torch.bool), self._live()
            seen = torch.cat((self._columns.diff(dim=1) > 0, last), dim=1)
            if live is not None:
                seen = seen & (live.gather(1, self._columns) != 0)
            seen = seen[:, None, None]
            visible = lambda _: seen  # noqa: E731 - every row sees the same
        total, done = torch.zeros_like(own, dtype=torch.float32), 0
        for block in attention_rows(
            take_along(values, asking[:, None, :, None], dim=2).flatten(0, 1),
            with_whom.flatten(0, 1),
            1 / math.sqrt(values.shape[-1]),
            visible=visible,
            block=max(BLOCK_NUMBERS, self._columns.numel() * self._width),
            samples=len(own),
        ):
            alike = block.view(len(own), -1, *block.shape[1:]).mean(dim=1)  # (samples, some, those compared with)
            if signal.among != "image":
                alike = take_along(alike, own[:, None], dim=2)
            total += (alike * asks[:, done : done + alike.shape[1], None]).sum(dim=1)
            done += alike.shape[1]
        return total

    def _pivots_of(self, count: int, unit: Unit) -> Tensor:
        none = self._columns.new_full((len(self._columns), count), -1)
        if unit.text_after == (False,) or not len(unit):
            return none
        asking, real = self._text_behind(unit)
        if not asking.shape[1]:
            return none
        norms = self._norms().gather(1, asking)  # (samples, text rows)
        number = torch.full_like(asking[:, :1], asking.shape[1])
        if real is not None:
            norms = norms.masked_fill(real == 0, -1)
            number = real.sum(dim=1, keepdim=True)
        order = norms.sort(dim=1, descending=True, stable=True).indices
        places = torch.arange(count, device=order.device) % number.clamp(min=1)  # of three rows 0 1 2 0
        columns = self._columns.gather(1, asking.gather(1, order.gather(1, places)))  # (samples, count)
        return torch.where(number > 0, columns, none)

    def _norms(self) -> Tensor:
        """L1 norms of the keys of all rows: (samples, rows) float32."""
        norms: Tensor = torch.linalg.vector_norm(self._all_keys(), ord=1, dim=(1, 3), dtype=torch.float32)
        return norms

    def _all_keys(self) -> Tensor:
        """Keys of all rows after RoPE, (samples, key heads, rows, head size)."""
        if self._made_keys is None:
            no_queries = self._vision[:, :0]
            _, self._made_keys, _ = self._queries_and_keys(no_queries)
        return self._made_keys

    # -- attention rows ----------------------------------------------------------------------------------------

    def _blocks(self, signal: Attention, unit: Unit) -> Iterator[Tensor]:
        """Attention that rows which ask pay to a unit's rows: (samples, heads, some of them, rows) float32, blocks in
        order; one head stands for all where their mean is wanted.

        A sample with less text behind them than another has rows of zeros in the place of what it lacks.
        """
        columns = self._vision[:, unit.rows]
        samples = len(columns)
        if not len(unit):  # an image that has lost all its tokens
            return
        asking, real = self._asking(signal, unit, columns)
        if not asking.shape[1]:
            return
        query, keys, scaling = self._queries_and_keys(asking)
        self._made_keys, before = keys, 0
        if self._past is not None:
            if self._past.shape[1::2] != keys.shape[1::2]:
                raise UnsupportedError(
                    "This model stores latents, and no keys, of earlier turns, so attention that a later picture's "
                    "prompt pays cannot be read. Use a method that reads no attention (V2Drop), or begin anew."
                )
            before = self._past.shape[2]
            keys = torch.cat((self._past.to(keys.dtype), keys), dim=2)  # (samples, heads, slots, head size)
        both_ways = signal.both_ways and signal.rows == "vision"
        last: Tensor | None = None
        visible: Callable[[slice], Tensor] | None = None
        if self._sees is None:
            last = (columns[:, -1:].expand_as(asking) if both_ways else asking) + before
        else:
            visible = self._visible(self._sees, asking, columns if both_ways else None, keys.shape[2], before)
        blocks = attention_rows(
            query.flatten(0, 1),
            keys.flatten(0, 1),
            scaling,
            last_key=last,
            visible=visible,
            block=max(BLOCK_NUMBERS, self._columns.numel() * self._width),  # less than the layer will hold
            softcap=self._softcap,
            samples=samples,
        )
        done, places = 0, (columns + before)[:, None, None]
        turned = None
        if signal.without_distance:
            turned = self._turned_ones(query.shape[-1])
        for probabilities in blocks:
            heads = probabilities.view(samples, -1, *probabilities.shape[1:])  # (samples, heads, some, slots)
            if signal.heads == "mean":
                heads = heads.mean(dim=1, keepdim=True)
            paid = take_along(heads, places, dim=3)  # (samples, heads, some, rows)
            del probabilities, heads  # before the next block is made
            some = slice(done, done + paid.shape[2])
            if turned is not None:
                rows = take_along(turned, asking[:, some, None], dim=1)  # (samples, some, head size)
                paid = paid / nearness(rows, take_along(turned, columns[..., None], dim=1))[:, None]
            yield paid if real is None else paid * real[:, None, some, None]
            done += paid.shape[2]

    def _asking(self, signal: Attention, unit: Unit, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows that ask for a signal of a unit whose rows are in these columns, (samples, rows) int64.

        Returns:
            (samples, asking) int64; and which are real, None if all are.
        """
        if signal.rows == "vision":
            rows = columns.shape[1]
            if signal.sample is None or signal.sample >= rows:
                return columns, None
            return columns[:, spread(rows, signal.sample, columns.device)], None
        if signal.rows == "last":  # behind it may be padding
            live = self._live()
            if live is None:
                return self._columns.new_full((len(self._columns), 1), self._columns.shape[1] - 1), None
            return last_marked((live.gather(1, self._columns) != 0).long(), 1)[0], None
        asking, real = self._text_behind(unit)
        if not asking.shape[1]:
            return asking, real
        # Real rows stand behind the others.
        if signal.rows == "null":
            if real is None:
                return asking[:, :1], None
            number = real.sum(dim=1, keepdim=True)
            place = (asking.shape[1] - number).clamp(max=asking.shape[1] - 1)
            return asking.gather(1, place), number > 0
        if signal.rows == "but_last":
            return asking[:, :-1], None if real is None else real[:, :-1]
        if signal.rows == "raters":
            raters = self._bucket.text[RATERS][:, unit.image].to(asking.device)
            is_rater = raters.gather(1, self._columns.gather(1, asking))  # (samples, asking)
            return asking, is_rater if real is None else is_rater & (real != 0)
        return asking, real

    def _text_behind(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        """Text rows behind a unit, as many in every sample; and which of them a sample has, None if all do.

        An example: rows are vision, text, text in one sample and text, vision, text in the other. Two rows are taken of
        both, the last two; of the other sample's the first is not real.
        """
        rows = self._columns.shape[1]
        places = torch.arange(rows, device=self._vision.device)
        # 1 at every row, then 0 at vision tokens, rows before the unit's end, and padding: (samples, rows).
        text = self._vision.new_ones(len(self._vision), rows).scatter_(1, self._vision, 0)
        text = text * (places > self._vision[:, unit.stop - 1 : unit.stop])
        live = self._live()
        if live is not None:  # generation reads the output of some padding rows, but their attention is not scored
            text = text * (live.gather(1, self._columns) != 0)
        most, exact = self._bucket.text_behind(unit.start, unit.stop)
        asking, real = last_marked(text, most)
        if exact:
            return asking, None
        return asking, real

    def _visible(
        self, sees: Callable[[Tensor], Tensor], asking: Tensor, image: Tensor | None, slots: int, before: int
    ) -> Callable[[slice], Tensor]:
        """Which slots some of the asking rows see; with all of an image whose rows look both ways."""
        columns = self._columns
        if image is None:
            return lambda some: sees(columns.gather(1, asking[:, some]))
        places = torch.arange(slots, device=asking.device) - before
        inside = (places >= image[:, :1]) & (places <= image[:, -1:])  # (samples, slots)
        inside = inside[:, None, None]
        return lambda some: sees(columns.gather(1, asking[:, some])) | inside


def put_together(signals: Sequence[Attention], blocks: Iterable[Tensor]) -> dict[Attention, Tensor]:
    """Attention rows put together, block by block.

    Args:
        signals: What is wanted: they differ in nothing but how rows are put together.
        blocks: (…, some rows, tokens) each: samples and heads may be in front.

    Returns:
        The signals, (…, tokens) each; none where there are no rows.
    """
    over, renormalises = {signal.over for signal in signals}, signals[0].renormalise
    # Where samples differ in how much text is behind, rows of zeros fill up: they ask for nothing.
    filled = signals[0].rows in OF_TEXT and (renormalises or "mean" in over)
    of_rows: dict[str, Tensor] = {}  # their "sum" and "max"
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
    """Signals that are made of the same rows of attention, together."""
    kinds = alike(replace(signal, over="sum") for signal in signals)
    return [[signals[place] for place in places] for places in kinds]


def last_marked(marks: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where the last marked places of each row are, `most` of them.

    An example: marks 1 0 1 1 and 0 0 0 1, two of each: places 2 3 and 2 3, marks 1 1 and 0 1.

    Args:
        marks: (rows, places), 0 or 1.
        most: At least as many as any row has.

    Returns:
        (rows, most) int64 twice: places, the marked ones at the end and in order; and their marks.
    """
    # A stable sort of 0s and 1s brings the marked places to the end, in order.
    sorted_marks, order = marks.sort(dim=1, stable=True)
    first = marks.shape[1] - most
    return order[:, first:], sorted_marks[:, first:]
