"""Each layer: what it is handed, read at some rows, and streams of hidden states as one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Original = Callable[..., Any]
"""The function of the model that a hook stands around."""


def rows_of(full: Tensor, places: Tensor, samples: Tensor | None) -> Tensor:
    """(…, samples or 1, columns, width) -> (…, samples, rows, width); M-RoPE's tables may have its axes in front.

    `samples` is None where there is one.
    """
    if samples is None:
        return full.index_select(-2, places[0])
    if full.shape[-3] == 1:  # shared by all samples
        return full[..., 0, places, :]
    return full[..., samples, places, :]


def at_rows(value: Any, shape: tuple[int, int], places: Tensor, owners: Tensor | None, source: Tensor) -> Any:
    """What a layer is handed, of some rows: a tensor of (…, samples or 1, columns, …), or a sequence of such, is read
    there, anything else is what it was.

    Numbers that were computed of a row are where the row is stored; ids and flags are of the token that it stands for.

    Args:
        value: The argument.
        shape: Samples and columns of the call.
        places: (some, rows) int64, the column that each row is stored in.
        owners: (some, 1) int64, whose rows they are; None where the call has one sample.
        source: (some, rows) int64, the column whose token each stands for.
    """
    if isinstance(value, tuple | list):
        return type(value)(at_rows(part, shape, places, owners, source) for part in value)
    if not isinstance(value, Tensor):
        return value
    samples, span = shape
    axes = (axis for axis in range(1, value.dim()) if value.shape[axis] == span)
    axis = next((axis for axis in axes if value.shape[axis - 1] in (1, samples)), None)
    if axis is None:
        return value
    wide = value.reshape(*value.shape[: axis + 1], -1)  # (…, samples or 1, columns, numbers)
    rows = rows_of(wide, places if value.is_floating_point() else source, owners)
    return rows.reshape(*rows.shape[:-1], *value.shape[axis + 1 :])


@dataclass(frozen=True, slots=True)
class Streams:
    """Several streams of hidden states, which the engine takes for one of all their widths.

    Attributes:
        count: How many.
        first: Whether they stand in front of the samples, and not behind the columns.
    """

    count: int
    first: bool

    @classmethod
    def of(cls, hidden: Tensor, shape: tuple[int, int]) -> "Streams":
        """Those of (samples, columns, streams, width) or (streams, samples, columns, width).

        Args:
            hidden: What a layer is handed.
            shape: Samples and columns of the call.
        """
        first = hidden.shape[:2] != shape
        return cls(hidden.shape[0 if first else 2], first)

    def fold(self, hidden: Tensor) -> Tensor:
        """(samples, columns, streams · width)."""
        behind = hidden.movedim(0, 2) if self.first else hidden
        return behind.flatten(2)

    def unfold(self, rows: Tensor) -> Tensor:
        """What `fold` was given."""
        behind = rows.view(*rows.shape[:2], self.count, -1)
        if self.first:
            return behind.movedim(2, 0)
        return behind

    def around(self, original: Original) -> Original:
        """A layer's forward that takes and answers one stream."""

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = original(self.unfold(hidden_states), *args, **kwargs)
            return with_hidden(output, self.fold)

        return run


def with_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a layer answers, its hidden states changed."""
    if isinstance(output, tuple):
        return change(output[0]), *output[1:]
    return change(output)
