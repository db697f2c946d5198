"""Each layer: which columns of the full-length stream the rows of a layer stand for."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.tensors import Memo, on_tensors, send

__all__ = ["RowMap", "rows_of"]

TENSORS = ("columns", "source", "valid", "_real", "_numbers", "_samples")
"""The attributes of a map that are tensors, or nests of them; some may be None."""


class RowMap:
    """The rows a layer processes, as columns of the call's full-length stream.

    A ragged batch is padded on the left, since generation reads the last row. A pad repeats the sample's first row, so
    its numbers stay finite, and it is no row's key. An example: of six columns the first sample has lost one, the
    second three.

        columns   0 1 3 4 5        2 2 2 4 5
        valid     1 1 1 1 1        0 0 1 1 1
        lengths   5                3

    Attributes:
        columns: (samples, rows) int64, the column each row is stored in, ascending in a sample.
        lengths: Real rows of each sample.
        valid: (samples, rows) bool, False for pads; None if there are none.
        source: (samples, rows) int64, the column whose position each row has, −1 for none; `columns` unless rows were
            merged or reordered.
        numbered: The map whose rows were numbered anew last, this one or an earlier one; None while all rows have the
            positions that they entered with.
    """

    def __init__(self, left: Tensor, lengths: Sequence[int], source: Tensor | None = None) -> None:
        """Make the map of what is left.

        Args:
            left: (samples, columns) bool, which columns are left.
            lengths: How many of each sample.
            source: (samples, columns) int64, the column whose position each column's row has, −1 for none; None: its
                own.
        """
        device = left.device
        self.lengths = tuple(lengths)
        longest = max(self.lengths)
        # A stable sort of 0s and 1s brings the columns that have left to the front: of the columns 0 to 5 with 2 and 4
        # dropped it makes 2 4 0 1 3 5, and the last `longest` are the rows. In a shorter sample some dropped columns
        # are among them, in front: these are its pads.
        order = left.to(torch.uint8).sort(dim=1, stable=True).indices
        self.columns = order[:, left.shape[1] - longest :]
        self.valid: Tensor | None = None
        self._real: tuple[Tensor, Tensor] | None = None
        if min(self.lengths) < longest:
            self._pad(longest, device)
        self.source = self.columns if source is None else source.gather(1, self.columns)
        self.numbered: RowMap | None = None
        self._numbers: Tensor | None = None
        self._span = left.shape[1]
        self._samples = torch.arange(len(left), device=device)[:, None]
        self._copies: dict[torch.device, RowMap] = {device: self}
        self.memo = Memo()

    def _pad(self, longest: int, device: torch.device) -> None:
        """Let the pads of shorter samples repeat their first row."""
        counts = torch.tensor(self.lengths)
        # Lengths 3 and 2 give 1 1 1 and 0 1 1.
        valid = torch.arange(longest)[None, :] >= (longest - counts)[:, None]
        sample, row = valid.nonzero(as_tuple=True)  # on the host: the counts are known there
        self.valid = send(valid, device)
        self._real = send(sample, device), send(row, device)
        # A sample of no rows at all repeats the last column.
        pads = (longest - counts).clamp(max=longest - 1)
        first = self.columns.gather(1, send(pads[:, None], device))
        self.columns = torch.where(self.valid, self.columns, first)

    def number_anew(self) -> None:
        """Number the rows from the first on: each has its place among those that are left as its position."""
        self.numbered = self

    def number_on(self, before: "RowMap") -> None:
        """Let the rows keep the numbers that they have in the map before this one, if they have any."""
        if before.numbered is None:
            return
        self.numbered = before.numbered
        ranks = before._numbers
        if ranks is None:
            ranks = before._ranks(before.columns.device)
        # A pad repeats the first row, so it writes that one's number.
        ranks = ranks.clamp(min=0).expand_as(before.columns)
        # Merged rows are stored in other columns than those they stand for; one that stands for none stays where it is.
        by_source = ranks.new_zeros(len(ranks), self._span + 1)
        by_source.scatter_(1, before.source.masked_fill(before.source < 0, self._span), ranks)
        by_column = ranks.new_zeros(len(ranks), self._span).scatter_(1, before.columns, ranks)
        device = self.source.device
        own = by_source.to(device).gather(1, self.source.clamp(min=0))
        self._numbers = torch.where(self.source < 0, by_column.to(device).gather(1, self.columns), own)

    def on(self, device: torch.device) -> "RowMap":
        """This map with its tensors on `device`, kept for the next layer there."""
        if device not in self._copies:
            copy = object.__new__(RowMap)
            copy.__dict__.update(self.__dict__)
            for name in TENSORS:
                setattr(copy, name, on_tensors(getattr(self, name), lambda tensor: tensor.to(device)))
            copy.memo = Memo()
            self._copies[device] = copy  # all copies share one table of copies
        return self._copies[device]

    def unpruned(self, past: int) -> Tensor:
        """Columns of the rows with `past` columns before this call: (samples, rows) int64, −1 for a pad.

        The same tensor for every layer with the same past, so that what is derived from it is made once.
        """
        return self.memo.once(lambda: self._shifted(past), "unpruned", past)

    def _shifted(self, past: int) -> Tensor:
        columns = self.columns + past
        if self.valid is None:
            return columns
        return columns.masked_fill(~self.valid, -1)

    def gather(self, full: Tensor) -> Tensor:
        """Rows of a full-length tensor: (samples or 1, columns, width) -> (samples, rows, width)."""
        return rows_of(full, self.columns, self._samples)

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of `full` with the real rows written back; columns that were dropped keep their last value."""
        if self._real is None:
            return full.index_put((self._samples, self.columns), rows)
        sample, row = self._real
        return full.index_put((sample, self.columns[sample, row]), rows[sample, row])

    def last_rows(self, samples: Tensor, columns: Tensor) -> Tensor:
        """The column of the last row at or before each of some columns, (count,) int64 each.

        With rows of columns 0, 1, 4 and 6 left, it is 4 for column 5 and 6 for column 6; a column with no row before it
        stands for itself.
        """
        left = self.columns[samples]  # (count, rows), ascending
        ranks = torch.searchsorted(left, columns[:, None], right=True) - 1
        last = left.gather(1, ranks.clamp(min=0))
        return torch.where(ranks < 0, columns[:, None], last)[:, 0]

    def pick(self, tables: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows of a full-length (cos, sin) pair, each at the position it had."""
        places = self.source.clamp(min=0)
        return rows_of(tables[0], places, self._samples), rows_of(tables[1], places, self._samples)

    def renumbered(self, first: Tensor) -> Tensor:
        """Position ids of the rows, counted on from `first`, (samples,): (samples, rows) int64."""
        if self._numbers is None:
            return first[:, None] + self._ranks(first.device)
        return first[:, None] + self._numbers.to(first.device)

    def _ranks(self, device: torch.device) -> Tensor:
        """Each row's place among the real ones of its sample: (rows,) or (samples, rows) int64."""
        ranks = torch.arange(self.columns.shape[1], device=device)
        if self.valid is not None:
            # With one pad in front, ranks 0 1 2 become −1 0 1.
            pads = self.columns.shape[1] - torch.tensor(self.lengths)[:, None]
            ranks = ranks - send(pads, device)
        return ranks

    def shift(self, before: Tensor | None, live: Sequence[int]) -> Tensor:
        """How far positions have moved up once these rows are through: (samples,) int64, one tensor for all layers.

        Args:
            before: How far they had on this layer's cache before; None: not at all.
            live: Columns of the call that are no padding, for each sample.
        """
        return self.memo.once(lambda: self._more_shift(before, live), "shift", before)

    def _more_shift(self, before: Tensor | None, live: Sequence[int]) -> Tensor:
        numbered = self.numbered or self
        gone = torch.tensor([count - left for count, left in zip(live, numbered.lengths, strict=True)])
        if before is None:
            return send(gone, self.columns.device)
        return send(gone, before.device) + before


def rows_of(full: Tensor, places: Tensor, samples: Tensor) -> Tensor:
    """(…, samples or 1, columns, width) -> (…, samples, rows, width); M-RoPE's tables may have its axes in front."""
    if full.shape[-3] == 1:  # shared by all samples
        return full[..., 0, places, :]
    return full[..., samples, places, :]
