"""Which columns of a call the rows of a layer stand for."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Layout"]


class Layout:
    """The rows a layer processes, as columns of the call's full-length stream.

    A ragged batch is padded on the left, since generation reads the last row; a pad repeats the sample's
    first row, so its numbers stay finite, and is nobody's key.

    Attributes:
        index: (samples, rows) int64, the column each row stands for, ascending in a sample.
        lengths: Real rows of each sample.
        valid: (samples, rows) bool, False for pads; None if there are none.
    """

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.lengths = tuple(row.shape[0] for row in rows)
        longest, device = max(self.lengths), rows[0].device
        self.index = torch.stack([torch.cat((_first(row).expand(longest - row.shape[0]), row)) for row in rows])
        self.valid: Tensor | None = None
        self._real: tuple[Tensor, Tensor] | None = None
        if any(length < longest for length in self.lengths):
            counts = torch.tensor(self.lengths)
            valid = torch.arange(longest)[None, :] >= (longest - counts)[:, None]
            sample, row = valid.nonzero(as_tuple=True)  # on the host: the counts are known there
            self.valid = valid.to(device)
            self._real = sample.to(device), row.to(device)
        self._samples = torch.arange(len(rows), device=device)[:, None]
        self._moved: dict[torch.device, Layout] = {device: self}
        self._rotary: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []
        self._columns: dict[int, Tensor] = {}

    def on(self, device: torch.device) -> "Layout":
        """This layout with its tensors on `device`, kept for the next layer there."""
        if device not in self._moved:
            twin = object.__new__(Layout)
            twin.lengths, twin.index = self.lengths, self.index.to(device)
            twin.valid = None if self.valid is None else self.valid.to(device)
            twin._real = None if self._real is None else (self._real[0].to(device), self._real[1].to(device))
            twin._samples, twin._moved = self._samples.to(device), self._moved
            twin._rotary, twin._columns = [], {}
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
        """Rows of a full-length tensor: (samples or 1, columns, …) -> (samples, rows, …)."""
        return full[0][self.index] if full.shape[0] == 1 else full[self._samples, self.index]

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of `full` with the real rows written back; columns that left keep their last value."""
        if self._real is None:
            return full.index_put((self._samples, self.index), rows)
        sample, row = self._real
        return full.index_put((sample, self.index[sample, row]), rows[sample, row])

    def rotary(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rows of a full-length (cos, sin) pair, gathered once for all layers that share it."""
        for source, gathered in self._rotary:
            if source is pair[0]:
                return gathered
        gathered = self.gather(pair[0]), self.gather(pair[1])
        self._rotary.append((pair[0], gathered))
        return gathered


def _first(row: Tensor) -> Tensor:
    """A sample's first row, (1,); column 0 for a sample without any."""
    return row[:1] if row.shape[0] else row.new_zeros(1)
