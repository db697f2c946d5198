"""Which columns of a call the rows of a layer stand for."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from foveate.core.host import send

__all__ = ["RowMap", "rows_of"]


class RowMap:
    """The rows a layer processes, as columns of the call's full-length stream.

    A ragged batch is padded on the left, since generation reads the last row; a pad repeats the sample's
    first row, so its numbers stay finite, and is nobody's key.

    Attributes:
        index: (samples, rows) int64, the column each row stands for, ascending in a sample.
        lengths: Real rows of each sample.
        valid: (samples, rows) bool, False for pads; None if there are none.
        source: (samples, rows) int64, the column whose position each row has, −1 for none; `index` unless rows were
            merged or reordered.
        numbered: The layout whose rows were numbered anew last, this one or an earlier one; None while all rows have
            the positions that they entered with.
    """

    def __init__(self, left: Tensor, lengths: Sequence[int], origin: Tensor | None = None) -> None:
        """Takes which columns are left, (samples, columns) bool, how many in each sample, and the column whose position
        each has, (samples, columns) int64, −1 for none (None: its own)."""
        self.lengths, device = tuple(lengths), left.device
        longest, ragged = max(self.lengths), min(self.lengths) < max(self.lengths)
        # Those that left come first, so that pads are in front; the host knows how many there are.
        self.index = left.to(torch.uint8).sort(dim=1, stable=True).indices[:, left.shape[1] - longest :]
        self.valid: Tensor | None = None
        self._real: tuple[Tensor, Tensor] | None = None
        if ragged:
            counts = torch.tensor(self.lengths)
            valid = torch.arange(longest)[None, :] >= (longest - counts)[:, None]
            sample, row = valid.nonzero(as_tuple=True)  # on the host: the counts are known there
            self.valid = send(valid, device)
            self._real = send(sample, device), send(row, device)
            first = self.index.gather(1, send((longest - counts).clamp(max=longest - 1)[:, None], device))
            self.index = torch.where(self.valid, self.index, first)
        self.source = self.index if origin is None else origin.gather(1, self.index)
        self.numbered: RowMap | None = None
        self._numbers: Tensor | None = None
        self._span = left.shape[1]
        self._samples = torch.arange(len(left), device=device)[:, None]
        self._moved: dict[torch.device, RowMap] = {device: self}
        self._rotary: list[tuple[tuple[Tensor | None, str | None], tuple[Tensor, Tensor]]] = []
        self._columns: dict[int, Tensor] = {}
        self._shifts: list[tuple[Tensor | None, Tensor]] = []

    def number_anew(self) -> None:
        """Number the rows from the first on: each has its place among those that are left as its position."""
        self.numbered = self

    def number_on(self, before: "RowMap") -> None:
        """Let the rows keep the numbers that they have in the layout before this one, if they have any."""
        if before.numbered is None:
            return
        self.numbered = before.numbered
        ranks = before._ranks(before.index.device) if before._numbers is None else before._numbers
        # A pad repeats the first row, so it writes that one's number.
        ranks = ranks.clamp(min=0).expand_as(before.index)
        numbers = ranks.new_zeros(len(ranks), self._span).scatter(1, before.index, ranks)
        self._numbers = numbers.to(self.source.device).gather(1, self.source.clamp(min=0))

    def on(self, device: torch.device) -> "RowMap":
        """This layout with its tensors on `device`, kept for the next layer there."""
        if device not in self._moved:
            twin = object.__new__(RowMap)
            twin.lengths, twin.index, twin.source = self.lengths, self.index.to(device), self.source.to(device)
            twin.valid = None if self.valid is None else self.valid.to(device)
            twin._real = None if self._real is None else (self._real[0].to(device), self._real[1].to(device))
            twin.numbered, twin._span = self.numbered, self._span
            twin._numbers = None if self._numbers is None else self._numbers.to(device)
            twin._samples, twin._moved = self._samples.to(device), self._moved
            twin._rotary, twin._columns, twin._shifts = [], {}, []
            self._moved[device] = twin
        return self._moved[device]

    def columns(self, past: int) -> Tensor:
        """Unpruned columns of the rows, `past` columns before this call: (samples, rows) int64, −1 for a pad.

        The same tensor for every layer with the same past, so that what is derived from it is made once.
        """
        if past not in self._columns:
            columns = self.index + past
            self._columns[past] = columns if self.valid is None else columns.masked_fill(~self.valid, -1)
        return self._columns[past]

    def gather(self, full: Tensor) -> Tensor:
        """Rows of a full-length tensor: (samples or 1, columns, width) -> (samples, rows, width)."""
        return rows_of(full, self.index, self._samples)

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of `full` with the real rows written back; columns that left keep their last value."""
        if self._real is None:
            return full.index_put((self._samples, self.index), rows)
        sample, row = self._real
        return full.index_put((sample, self.index[sample, row]), rows[sample, row])

    def last_rows(self, samples: Tensor, columns: Tensor) -> Tensor:
        """The column of the last row at or before each of some columns, (count,) int64 each.

        With rows of columns 0, 1, 4 and 6 left, it is 4 for column 5 and 6 for column 6; a column with no row before it
        stands for itself.
        """
        index = self.index[samples]  # (count, rows)
        ranks = torch.searchsorted(index, columns[:, None], right=True) - 1
        found = index.gather(1, ranks.clamp(min=0))
        return torch.where(ranks < 0, columns[:, None], found)[:, 0]

    def rotary(
        self, key: tuple[Tensor | None, str | None], make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """What `make` answers, made once for all layers that give the same tensor object and type of RoPE."""
        for (known, kind), made in self._rotary:
            if known is key[0] and kind == key[1]:
                return made
        made = make()
        self._rotary.append((key, made))
        return made

    def pick(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows of a full-length (cos, sin) pair, each at the position it had."""
        places = self.source.clamp(min=0)
        return rows_of(pair[0], places, self._samples), rows_of(pair[1], places, self._samples)

    def renumbered(self, first: Tensor) -> Tensor:
        """Position ids of the rows, counted on from `first`, (samples,): (samples, rows) int64."""
        ranks = self._ranks(first.device) if self._numbers is None else self._numbers.to(first.device)
        return first[:, None] + ranks

    def _ranks(self, device: torch.device) -> Tensor:
        """Each row's place among the real ones of its sample: (rows,) or (samples, rows) int64."""
        ranks = torch.arange(self.index.shape[1], device=device)
        if self.valid is not None:
            pads = self.index.shape[1] - torch.tensor(self.lengths)[:, None]
            ranks = ranks - send(pads, device)
        return ranks

    def shift(self, before: Tensor | None, live: Sequence[int]) -> Tensor:
        """How far positions have moved up once these rows are through: (samples,) int64, one tensor for all layers.

        Args:
            before: How far they had on this layer's cache before; None: not at all.
            live: Columns of the call that are no padding, for each sample.
        """
        for known, made in self._shifts:
            if known is before:
                return made
        lengths = self.lengths if self.numbered is None else self.numbered.lengths
        gone = torch.tensor([count - left for count, left in zip(live, lengths, strict=True)])
        made = send(gone, self.index.device) if before is None else send(gone, before.device) + before
        self._shifts.append((before, made))
        return made


def rows_of(full: Tensor, places: Tensor, samples: Tensor) -> Tensor:
    """(…, samples or 1, columns, width) -> (…, samples, rows, width); M-RoPE's tables may have its axes in front."""
    return full[..., 0, places, :] if full.shape[-3] == 1 else full[..., samples, places, :]
