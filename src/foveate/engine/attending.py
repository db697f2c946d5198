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
from foveate.core.tensors import BLOCK_NUMBERS, alike, take_along
from foveate.engine.buckets import Bucket
from foveate.engine.samples import Unit
from foveate.errors import UnsupportedError

RATERS = "raters"
"""Name of a bucket's tensor that marks the raters."""
OF_TEXT = ("after", "but_last", "null", "raters")
"""Values of `Attention.rows` for queries in the text behind an image."""


class RowsReader(ABC):
    """Reads signals from queries and keys of a decoder layer at a bucket's rows. Each host subclasses it.

    Args:
        bucket: The samples, and their rows that are left.
        columns: (samples, rows) int64, ascending: the columns of all rows of these samples, text included.
        width: Width of the residual stream.
    """

    def __init__(self, bucket: Bucket, columns: Tensor, width: int) -> None:
        self._bucket = bucket
        self._columns = columns
        self._width = width
        self._made_keys: Tensor | None = None
        # Index of each vision token among all rows. Pads in front repeat the first row: take the last of equal columns.
        self._vision = torch.searchsorted(columns.contiguous(), bucket.columns, right=True) - 1
        self._past: Tensor | None = None
        self._sees: Callable[[Tensor], Tensor] | None = None
        self._softcap: float | None = None

    @abstractmethod
    def _queries_and_keys(self, asking: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return queries of the rows `asking`, (samples, rows) int64, keys of all rows, and the scaling factor."""

    @abstractmethod
    def _rotated_ones(self, size: int) -> Tensor:
        """Return a vector of ones rotated to the position of each row: (samples, rows, head size) float32."""

    def _plain(self, asking: Tensor) -> tuple[Tensor, Tensor]:
        """Return `_queries_and_keys` before RoPE and scaling. A host without them must refuse `Products`."""
        raise NotImplementedError

    def _values(self) -> Tensor:
        """Return values of all rows, (samples, key heads, rows, size). A host without them refuses `ValueLikeness`."""
        raise NotImplementedError

    def _layer_input(self) -> Tensor:
        """Return the layer's input at the rows, (samples, rows, width). A host without it refuses `OwnSignal`."""
        raise NotImplementedError

    def _live(self) -> Tensor | None:
        """Return nonzero where a column is not padding, (samples, columns); None without padding."""
        return None

    def in_prompt(self, columns: Tensor) -> Tensor:
        """Convert columns of the call, (samples, any) int64, to offsets from the sample's first row. −1 stays < 0."""
        return columns - self._columns[:, :1]

    # -- signals -----------------------------------------------------------------------------------------------

    def read(self, signal: Signal, units: Sequence[Unit]) -> Tensor:
        """Return a signal of the units' rows, concatenated: (samples, rows, …) float32; see each signal.

        `Keys`, `KeyNorms` and `Columns` cover all rows of the bucket, whatever the units. `Products` takes one unit:
        all rows of a sample. `Pivots` are columns of the text behind each unit, (samples, units, count) int64: those
        with the largest key norms, largest first. If there is less text, they repeat from the first; without text −1.
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
        """Compute signals that differ only in how rows are combined. Each attention row is computed once.

        Returns:
            For each signal (samples, rows of the units, concatenated) float32.
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
            else:  # a mean over heads has one entry
                values[signal] = paid[..., 0, :] if paid.shape[-2] == 1 else paid.amax(dim=-2)
        if values:
            return values
        zeros = self._vision.new_zeros(len(self._vision), len(unit), dtype=torch.float32)
        return dict.fromkeys(signals, zeros)

    def _products(self, signal: Products, unit: Unit) -> Tensor:
        """Compute `Products` of the bucket's rows; `unit` is all of them: (samples, rows, heads) float32."""
        asking, real = self._text_behind(unit)
        if real is None:
            real = torch.ones_like(asking)
        first, last = signal.leave_out
        place, number = real.cumsum(dim=1), real.sum(dim=1, keepdim=True)  # real 0 1 1 gives place 0 1 2, number 2
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
        """Return an input of an `OwnSignal` for the bucket: (samples, heads, rows, size), or (samples, rows, width)."""
        if name == "hidden":
            return self._layer_input()
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
        # Leave out the first `skip` asking rows, unless none is left then: asks 0 1 1 1 with skip 1 gives 0 0 1 1.
        skipped = asks * (asks.cumsum(dim=1) > signal.skip)
        asks = torch.where(skipped.any(dim=1, keepdim=True), skipped, asks)
        of_text = self._sum_of_likeness(signal, own, asking, asks)
        number = asks.sum(dim=1, keepdim=True)
        first = of_text / number.clamp(min=1)
        # The rows most alike to the text ask too, for the second column.
        seeds = first.sort(dim=1, descending=True, stable=True).indices[:, : signal.seed_count(len(unit))]
        of_seeds = self._sum_of_likeness(signal, own, own.gather(1, seeds), torch.ones_like(seeds))
        return torch.stack((first, (of_text + of_seeds) / (number + seeds.shape[1])), dim=-1) * (number > 0)[..., None]

    def _sum_of_likeness(self, signal: ValueLikeness, own: Tensor, asking: Tensor, asks: Tensor) -> Tensor:
        """Sum the likeness of rows that ask, (samples, asking) int64 with weights 0 or 1, to an image's rows."""
        with_whom = values = self._values()
        visible: Callable[[slice], Tensor] | None = None
        if signal.among == "image":
            with_whom = take_along(values, own[:, None, :, None], dim=2)
        else:
            # Hide padding: keep the last of equal columns, because pads in front repeat the first row.
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
            alike = block.view(len(own), -1, *block.shape[1:]).mean(dim=1)  # (samples, some, rows compared with)
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
        places = torch.arange(count, device=order.device) % number.clamp(min=1)  # 4 pivots of 3 rows: 0 1 2 0
        columns = self._columns.gather(1, asking.gather(1, order.gather(1, places)))  # (samples, count)
        return torch.where(number > 0, columns, none)

    def _norms(self) -> Tensor:
        """L1 norms of the keys of all rows: (samples, rows) float32."""
        norms: Tensor = torch.linalg.vector_norm(self._all_keys(), ord=1, dim=(1, 3), dtype=torch.float32)
        return norms

    def _all_keys(self) -> Tensor:
        """Return keys of all rows after RoPE, (samples, key heads, rows, head size)."""
        if self._made_keys is None:
            no_queries = self._vision[:, :0]
            _, self._made_keys, _ = self._queries_and_keys(no_queries)
        return self._made_keys

    # -- attention rows ----------------------------------------------------------------------------------------

    def _blocks(self, signal: Attention, unit: Unit) -> Iterator[Tensor]:
        """Yield the attention that asking rows pay to a unit's rows, in blocks of asking rows, in order.

        Each block is (samples, heads, some asking rows, rows) float32, with a single head if their mean is wanted. A
        sample with less text than another has rows of zeros in place of the missing text.
        """
        columns = self._vision[:, unit.rows]
        samples = len(columns)
        if not len(unit):  # an image that lost all its tokens
            return
        asking, real = self._asking(signal, unit, columns)
        if not asking.shape[1]:
            return
        query, keys, scaling = self._queries_and_keys(asking)
        self._made_keys, before = keys, 0
        if self._past is not None:
            if self._past.shape[1::2] != keys.shape[1::2]:
                raise UnsupportedError(
                    "This model caches latents instead of keys, so attention cannot be read for a picture in a later "
                    "turn. Use a method that reads no attention (V2Drop), or start with an empty cache."
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
            block=max(BLOCK_NUMBERS, self._columns.numel() * self._width),  # less memory than the layer itself needs
            softcap=self._softcap,
            samples=samples,
        )
        done, places = 0, (columns + before)[:, None, None]
        turned = None
        if signal.without_distance:
            turned = self._rotated_ones(query.shape[-1])
        for probabilities in blocks:
            heads = probabilities.view(samples, -1, *probabilities.shape[1:])  # (samples, heads, some, slots)
            if signal.heads == "mean":
                heads = heads.mean(dim=1, keepdim=True)
            paid = take_along(heads, places, dim=3)  # (samples, heads, some, rows)
            del probabilities, heads  # free them before the next block is computed
            some = slice(done, done + paid.shape[2])
            if turned is not None:
                rows = take_along(turned, asking[:, some, None], dim=1)  # (samples, some, head size)
                paid = paid / nearness(rows, take_along(turned, columns[..., None], dim=1))[:, None]
            yield paid if real is None else paid * real[:, None, some, None]
            done += paid.shape[2]

    def _asking(self, signal: Attention, unit: Unit, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the rows that ask for a signal of a unit whose rows are `columns`, (samples, rows) int64.

        Returns:
            (samples, asking) int64, and which are real; None if all are.
        """
        if signal.rows == "vision":
            rows = columns.shape[1]
            if signal.sample is None or signal.sample >= rows:
                return columns, None
            return columns[:, spread(rows, signal.sample, columns.device)], None
        if signal.rows == "last":  # padding may follow it
            live = self._live()
            if live is None:
                return self._columns.new_full((len(self._columns), 1), self._columns.shape[1] - 1), None
            return last_marked((live.gather(1, self._columns) != 0).long(), 1)[0], None
        asking, real = self._text_behind(unit)
        if not asking.shape[1]:
            return asking, real
        # Real rows come after the others.
        if signal.rows == "null":
            if real is None:
                return asking[:, :1], None
            number = real.sum(dim=1, keepdim=True)
            # The first real row: row 1 of four rows with three real ones.
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
        """Return text rows behind a unit, equally many in every sample, and which of them are real; None if all are.

        Example: one sample has rows vision, text, text, the other text, vision, text. Two rows are taken of each, the
        last two. The first of these is not real in the other sample.
        """
        rows = self._columns.shape[1]
        places = torch.arange(rows, device=self._vision.device)
        # 1 at every row, then 0 at vision tokens, at rows before the unit's end and at padding: (samples, rows).
        text = self._vision.new_ones(len(self._vision), rows).scatter_(1, self._vision, 0)
        text = text * (places > self._vision[:, unit.stop - 1 : unit.stop])
        live = self._live()
        if live is not None:  # generation reads the output of some padding rows, but their attention does not count
            text = text * (live.gather(1, self._columns) != 0)
        most, exact = self._bucket.text_behind(unit.start, unit.stop)
        asking, real = last_marked(text, most)
        if exact:
            return asking, None
        return asking, real

    def _visible(
        self, sees: Callable[[Tensor], Tensor], asking: Tensor, image: Tensor | None, slots: int, before: int
    ) -> Callable[[slice], Tensor]:
        """Return a function that says which slots asking rows see: by the mask, plus all of `image` if it is given."""
        columns = self._columns
        if image is None:
            return lambda some: sees(columns.gather(1, asking[:, some]))
        places = torch.arange(slots, device=asking.device) - before
        inside = (places >= image[:, :1]) & (places <= image[:, -1:])  # (samples, slots)
        inside = inside[:, None, None]
        return lambda some: sees(columns.gather(1, asking[:, some])) | inside


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


def last_marked(marks: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Find the places of the last `most` marked places of each row.

    Example: marks 1 0 1 1 and 0 0 0 1 with most = 2 give places 2 3 and 2 3, and marks 1 1 and 0 1.

    Args:
        marks: (rows, places), 0 or 1.
        most: At least as many as any row has.

    Returns:
        (rows, most) int64 twice: the places, marked ones at the end and in order; and their marks.
    """
    # A stable sort of 0s and 1s moves the marked places to the end, in order.
    sorted_marks, order = marks.sort(dim=1, stable=True)
    first = marks.shape[1] - most
    return order[:, first:], sorted_marks[:, first:]
