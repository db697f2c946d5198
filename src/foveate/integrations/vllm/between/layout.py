"""Between the layers: the rows of a step behind a cut, where their keys and values go, and the layers' metadata."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.core.tensors import send
from foveate.integrations.vllm.between.batch import Batch
from foveate.integrations.vllm.between.recording import Built

__all__ = ["Layout"]


class Layout:
    """The rows that a step has behind a cut; made once a batch of requests, since only counts decide it.

    A request's keys and values stand in the first slots of its own blocks. An example with one request of six tokens
    that lost two of them, in blocks of four slots, 7 and 2:

        rows    0 1 4 5        places   0 1 2 3        slots   28 29 30 31
        the next token         place    4              slot    8

    Args:
        batch: The step.
        dropped: Tokens that each request has lost so far.
        rows: (rows,) int64, which of the step's rows remain, ascending; None: all.
        counts: How many of each request these are.
        device: Of the model.
    """

    def __init__(
        self, batch: Batch, dropped: Sequence[int], rows: Tensor | None, counts: Sequence[int], device: torch.device
    ) -> None:
        self.rows = rows
        self._counts = tuple(counts)
        self._dropped_on_host = tuple(dropped)
        self._dropped = send(torch.tensor(dropped, dtype=torch.int32), device)
        # Rows of two requests, two and one: owners 0 0 1, places counted from the end −2 −1 −1.
        owners = torch.repeat_interleave(torch.tensor(self._counts))
        ends = torch.tensor(self._counts).cumsum(0)
        from_end = torch.arange(len(owners)) - ends[owners]
        self._owners = send(owners, device)
        self._from_end = send(from_end, device)

    @property
    def drops(self) -> bool:
        """Whether any request of the step has lost tokens."""
        return any(self._dropped_on_host)

    def slots(self, lengths: Tensor, table: Tensor, block: int) -> Tensor:
        """Where the rows' keys and values go, (rows,) int64.

        Args:
            lengths: (requests,), tokens of each sequence that are left.
            table: (requests, blocks), the blocks of each.
            block: Slots of a block.
        """
        places = lengths[self._owners] + self._from_end
        blocks = table[self._owners, places // block].long()
        return blocks * block + places % block

    def metadata(self, built: Built, stock: Any) -> tuple[Any, Tensor]:
        """The metadata of the layers behind the cut, and the slots of its rows.

        Args:
            built: What the step's own metadata was built of.
            stock: The step's own metadata.
        """
        common = built.common
        lengths = common.seq_lens - self._dropped
        slots = self.slots(lengths, common.block_table_tensor, built.builder.kv_cache_spec.block_size)
        if self.rows is None and _bounds_lengths(stock):
            return dataclasses.replace(stock, seq_lens=lengths, slot_mapping=slots), slots
        return built.builder.build(0, self._pruned(common, lengths, slots)), slots

    def _pruned(self, common: Any, lengths: Tensor, slots: Tensor) -> Any:
        """What a backend is told of the batch."""
        on_host = common.seq_lens_cpu_upper_bound - torch.tensor(self._dropped_on_host, dtype=torch.int32)
        starts = torch.tensor([0, *itertools.accumulate(self._counts)], dtype=torch.int32)
        positions = common.positions
        if positions is not None and self.rows is not None:
            positions = positions[..., self.rows]
        return dataclasses.replace(
            common,
            query_start_loc=send(starts, lengths.device),
            query_start_loc_cpu=starts,
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=on_host,
            num_actual_tokens=len(slots),
            max_query_len=max(self._counts),
            max_seq_len=int(on_host.max()),
            slot_mapping=slots,
            positions=positions,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )


def as_before(batch: Batch, dropped: Sequence[int], device: torch.device) -> Layout:
    """The layout of a step in which no row leaves."""
    return Layout(batch, dropped, None, batch.counts, device)


def _bounds_lengths(metadata: Any) -> bool:
    """Whether a backend takes metadata that was built for longer sequences with the same rows.

    The CPU's divides its work by the lengths that it was built for, and looks at the true ones when it runs.
    """
    return type(metadata).__name__ == "CPUAttentionMetadata"
