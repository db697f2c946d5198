"""Each layer: its arguments reduced to rows, and several streams of hidden states folded into one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Original = Callable[..., Any]
"""The model's function that a hook wraps."""


def gather_rows(full: Tensor, places: Tensor, samples: Tensor | None) -> Tensor:
    """Gather rows: (…, samples or 1, columns, width) -> (…, samples, rows, width). M-RoPE's axes may be in front.

    `samples` is None if there is only one.
    """
    if samples is None:
        return full.index_select(-2, places[0])
    if full.shape[-3] == 1:  # shared by all samples
        return full[..., 0, places, :]
    return full[..., samples, places, :]


def reduce_argument(value: Any, shape: tuple[int, int], places: Tensor, owners: Tensor | None, source: Tensor) -> Any:
    """Reduce an argument of a layer to some rows. Tensors of (…, samples or 1, columns, …) are gathered, also inside
    sequences; anything else is returned unchanged.

    Floating-point values were computed per row, so they are read where the row is stored. Ids and flags are those of
    the token that the row stands for.

    Args:
        value: The argument.
        shape: Samples and columns of the call.
        places: (some, rows) int64, the column that each row is stored in.
        owners: (some, 1) int64, the sample of each row; None if the call has one sample.
        source: (some, rows) int64, the column of the token that each row stands for.
    """
    if isinstance(value, tuple | list):
        return type(value)(reduce_argument(part, shape, places, owners, source) for part in value)
    if not isinstance(value, Tensor):
        return value
    samples, span = shape
    axes = (axis for axis in range(1, value.dim()) if value.shape[axis] == span)
    axis = next((axis for axis in axes if value.shape[axis - 1] in (1, samples)), None)
    if axis is None:
        return value
    wide = value.reshape(*value.shape[: axis + 1], -1)  # (…, samples or 1, columns, numbers)
    rows = gather_rows(wide, places if value.is_floating_point() else source, owners)
    return rows.reshape(*rows.shape[:-1], *value.shape[axis + 1 :])


@dataclass(frozen=True, slots=True)
class Streams:
    """Several streams of hidden states, which the engine handles as one stream of their joint width.

    Attributes:
        count: How many.
        first: Whether their axis comes before the samples, not after the columns.
    """

    count: int
    first: bool

    @classmethod
    def of(cls, hidden: Tensor, shape: tuple[int, int]) -> "Streams":
        """Describe streams of shape (samples, columns, streams, width) or (streams, samples, columns, width).

        Args:
            hidden: The hidden states that a layer gets.
            shape: Samples and columns of the call.
        """
        first = hidden.shape[:2] != shape
        return cls(hidden.shape[0 if first else 2], first)

    def fold(self, hidden: Tensor) -> Tensor:
        """Fold into (samples, columns, streams · width)."""
        behind = hidden.movedim(0, 2) if self.first else hidden
        return behind.flatten(2)

    def unfold(self, rows: Tensor) -> Tensor:
        """Undo `fold`."""
        behind = rows.view(*rows.shape[:2], self.count, -1)
        if self.first:
            return behind.movedim(2, 0)
        return behind

    def around(self, original: Original) -> Original:
        """Wrap a layer's forward so that it takes and returns one stream."""

        def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = original(self.unfold(hidden_states), *args, **kwargs)
            return with_hidden(output, self.fold)

        return run


def with_hidden(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a layer's output with its hidden states changed."""
    if isinstance(output, tuple):
        return change(output[0]), *output[1:]
    return change(output)
