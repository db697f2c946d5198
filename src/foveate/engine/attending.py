"""Each layer: computes attention rows of only the queries that score, and reduces them to the signals that stages read.

`RowsReader` does so for any host. See `engine.reading` for transformers models.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from foveate.core.attention import attention_rows, mean_of_busiest, nearness
from foveate.core.rank import spread
from foveate.core.reading import LayerReader
from foveate.core.signals import Attention, Signal
from foveate.core.tensors import alike, send, without_autocast
from foveate.core.units import Unit
from foveate.engine.program import ran_note
from foveate.engine.prompt_samples import image_units, sample_unit
from foveate.engine.rows import BIAS, Rows, find
from foveate.errors import UnsupportedError
from foveate.families.tap import Tapped

RATERS = "raters"
"""Name of the tensor in `Rows.about` that marks the raters."""
OF_TEXT = ("after", "but_last", "null", "raters")
"""Values of `Attention.rows` for queries in the text behind an image."""


class RowsReader(LayerReader):
    """Reads signals from queries and keys of a decoder layer at a sample's rows. Each host subclasses it.

    Args:
        table: The rows that are left, of all samples.
        member: Index of the sample.
        columns: (rows,) int64, ascending: the columns of all rows of the sample, text included.
        width: Width of the residual stream.
        layer: The layer.

    Attributes:
        streams: Of each signal that is read with others, those that are computed from the same attention rows.
    """

    def __init__(self, table: Rows, member: int, columns: Tensor, width: int, layer: int) -> None:
        own = table.columns[member]
        super().__init__(columns, own, find(own, columns), width)
        self.table = table
        self.member = member
        self.layer = layer
        self.streams: Mapping[Attention, Sequence[Attention]] = {}
        self._trailing = 0  # rows of padding behind the sample's last token
        self._paid: dict[tuple[Attention, int], Tensor] = {}  # by signal and image
        self._made_keys: Tensor | None = None
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

    @property
    def images(self) -> Sequence[Unit]:
        """The sample's images, or one unit of all vision rows if it is not known which of them belong to which."""
        sample, sizes = self.table.samples[self.member], self.table.sizes[self.member]
        if sizes is None:
            return [sample_unit(sample, len(self.vision))]
        return image_units(sample, sizes)

    @without_autocast
    def read(self, signal: Signal, unit: Unit) -> Tensor:
        """Return what a signal reads of a unit, image by image if it is `by_image`: (rows, …)."""
        units = self.images if signal.by_image and unit.image < 0 else [unit]
        values = [signal.read(self, part) for part in units if len(part)]
        if len(values) == 1:
            return values[0]
        return torch.cat(values)

    # -- as a signal's own code calls them ---------------------------------------------------------------------

    def queries(self, asking: Tensor) -> Tensor:
        return self._queries_and_keys(asking).queries

    def keys(self) -> Tensor:
        if self._made_keys is None:
            self._made_keys = self._queries_and_keys(self.vision[:0]).keys
        return self._made_keys

    def text_behind(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        words, exact = self.table.text_behind(self.member, unit)
        rows = find(words, self.columns)
        return rows, None if exact else rows > self.vision[unit.rows.stop - 1]

    def real(self) -> Tensor | None:
        padding = self.table.samples[self.member].padding
        return None if padding is None else ~torch.isin(self.columns, send(padding, self.columns.device))

    def in_prompt(self, columns: Tensor) -> Tensor:
        return columns - self.columns[0]

    def note(self, signal: Signal) -> None:
        values = self.read(signal, sample_unit(self.table.samples[self.member], len(self.vision)))
        self.table.put_note(self.member, ran_note(signal, self.layer), values)

    @without_autocast
    def note_text(self, signal: Signal, of_image: Callable[[Unit], Tensor]) -> None:
        self.table.about[self.member][repr(signal)] = torch.stack([of_image(unit) for unit in self.images])

    def attention(self, signal: Signal, unit: Unit) -> Tensor:
        assert isinstance(signal, Attention)
        if (signal, unit.image) not in self._paid:  # all of a stream at once, so that each row is computed once
            for each, values in self._attention(self.streams.get(signal, [signal]), unit).items():
                self._paid[each, unit.image] = values
        return self._paid.pop((signal, unit.image))

    # -- attention rows ----------------------------------------------------------------------------------------

    def _attention(self, signals: Sequence[Attention], unit: Unit) -> dict[Attention, Tensor]:
        """Compute signals that differ only in how rows are combined: (rows of the unit,) float32 each."""
        if BIAS in self.table.table:
            raise UnsupportedError(
                f"{signals[0]!r} is read in a layer to the logits of whose keys something is added, which foveate's "
                "attention scores do not have. Use a method that reads no attention there, or no bias."
            )
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
        zeros = self.vision.new_zeros(len(unit), dtype=torch.float32)
        return dict.fromkeys(signals, zeros)

    def _blocks(self, signal: Attention, unit: Unit) -> Iterator[Tensor]:
        """Yield the attention that asking rows pay to a unit's rows, in blocks of asking rows, in order.

        Each block is (heads, some asking rows, rows) float32, with a single head if their mean is wanted.
        """
        columns = self.vision[unit.rows]
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
            block=self.block,
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
            rows = len(self.columns) - self._trailing
            return torch.arange(rows - 1, rows, device=columns.device), None
        asking, real = self.text_behind(unit)
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
            is_rater = self.table.about[self.member][RATERS][unit.image, self.columns[asking]]
            return asking, is_rater if real is None else is_rater & real
        return asking, real

    def _visible(
        self, sees: Callable[[Tensor], Tensor], asking: Tensor, image: Tensor | None, slots: int, before: int
    ) -> Callable[[slice], Tensor]:
        """Return a function that says which slots asking rows see: by the mask, plus all of `image` if it is given."""
        columns = self.columns[asking]
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


def streams(signals: Sequence[Signal]) -> dict[Attention, list[Attention]]:
    """Return, for each attention, those that are computed from the same attention rows, itself included."""
    attention = [signal for signal in signals if isinstance(signal, Attention)]
    groups = alike(replace(signal, over="sum") for signal in attention)
    return {attention[place]: [attention[each] for each in group] for group in groups for place in group}
