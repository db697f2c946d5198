"""Decode: which slots of a cache layer stay, or are read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


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
