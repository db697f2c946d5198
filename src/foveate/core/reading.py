"""How a signal is read: what its class says, and what a host gives it of a decoder layer.

A stage before layer 3 gets what `Signal.of_rows` returns there. A signal of the layer that ran (`of_ran`) was noted
before, while layer 2 attended, by `Signal.note`. Both call `Signal.read`, which computes values of queries, keys and
values of a layer. Most signals need only one of these three functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor

from foveate.core.fields import check
from foveate.core.tensors import BLOCK_NUMBERS
from foveate.core.units import Unit


@dataclass(frozen=True)
class Signal:
    """A value that a stage reads. A subclass is a frozen dataclass of its options, and says how it is read.

    Raises:
        SettingError: If an option has an invalid value.
    """

    kind: ClassVar[str]
    """Its name in a view: `view.attention` for `Attention`."""
    of_ran: ClassVar[bool] = False
    """True if it is computed from queries or keys of the layer before the stage, while that layer attends."""
    ahead: ClassVar[bool] = False
    """True if it is computed from keys of the layer after the stage, ahead of that layer, which computes them again."""
    by_image: ClassVar[bool] = False
    """True if each image is read separately. False: all vision rows of a sample are read at once."""
    reads_text: ClassVar[bool] = False
    """True if its value depends on the prompt's text."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def layers_back(self) -> int:
        """Number of layers that must have run before a stage can read it."""
        return int(self.of_ran)

    def read(self, reader: "LayerReader", unit: Unit) -> Tensor:
        """Compute it for the rows of a unit, from a layer that attends or, if it is `ahead`, will run next.

        Returns:
            (rows, …).
        """
        raise NotImplementedError

    def note(self, reader: "LayerReader") -> None:
        """Note it while a layer attends, for stages before the next layer."""
        reader.note(self)

    def of_rows(self, rows: "LayerRows", unit: Unit) -> Tensor:
        """Return what a stage before a layer gets for a unit: (rows, …), or of another shape.

        By default it is read ahead, or it is what was noted of the rows.
        """
        if self.ahead:
            return unit.of(rows.read(self, rows.all_rows))
        return unit.of(rows.note_of(self))

    @classmethod
    def can_be_read(cls) -> bool:
        """Return whether it says how it is read."""
        return (cls.read, cls.note, cls.of_rows) != (Signal.read, Signal.note, Signal.of_rows)


class LayerReader(ABC):
    """A decoder layer at the rows of one sample, text included: its queries, keys and values.

    Attributes:
        columns: (rows,) int64, ascending: the columns of all rows.
        vision_columns: (vision rows,) int64: those of the vision rows.
        vision: (vision rows,) int64: index of each vision row among all rows.
        width: Width of the residual stream.
    """

    def __init__(self, columns: Tensor, vision_columns: Tensor, vision: Tensor, width: int) -> None:
        self.columns = columns
        self.vision_columns = vision_columns
        self.vision = vision
        self.width = width

    @abstractmethod
    def queries(self, asking: Tensor) -> Tensor:
        """Return queries after RoPE of some rows, (asking,) int64: (heads, asking, head size)."""

    @abstractmethod
    def keys(self) -> Tensor:
        """Return keys after RoPE of all rows: (key heads, rows, head size)."""

    def values(self) -> Tensor:
        """Return values of all rows, (key heads, rows, size), of a layer that attends."""
        raise NotImplementedError

    def entering(self) -> Tensor:
        """Return the layer's input at the vision rows: (vision rows, width)."""
        raise NotImplementedError

    def before_rope(self, asking: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries of some rows and keys of all rows, as `queries` and `keys`, but before RoPE; only ahead."""
        raise NotImplementedError

    @abstractmethod
    def attention(self, signal: Signal, unit: Unit) -> Tensor:
        """Return an `Attention` of a unit: (rows,) float32.

        Raters, and attention without distance, are known only if the stage declares that `Attention` too.
        """

    @abstractmethod
    def text_behind(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        """Return text rows behind a unit, (asking,) int64, and which of them are real, bool; None if all are.

        If text stands between an image's tokens, the host does not know how much of it is behind those that are left.
        """

    @abstractmethod
    def real(self) -> Tensor | None:
        """Return which rows are no padding, (rows,) bool; None if all are."""

    @abstractmethod
    def in_prompt(self, columns: Tensor) -> Tensor:
        """Convert columns of the call to offsets from the sample's first row. −1 stays below 0."""

    @property
    def block(self) -> int:
        """Float32 numbers that a block of a computation may hold: less memory than the layer itself needs."""
        return max(BLOCK_NUMBERS, len(self.columns) * self.width)

    # -- notes for stages before the next layer ----------------------------------------------------------------

    @abstractmethod
    def note(self, signal: Signal) -> None:
        """Note what a signal reads of the vision rows. Later cuts carry it along."""

    @abstractmethod
    def note_text(self, signal: Signal, of_image: Callable[[Unit], Tensor]) -> None:
        """Note what a function returns of each image, of one shape: something about the text behind it."""


class LayerRows(Protocol):
    """The vision rows of one sample before a decoder layer.

    Attributes:
        stream: The residual stream entering the layer, (columns, width).
    """

    stream: Tensor

    def norm(self, rows: Tensor, /) -> Tensor:
        """Apply the norm before the model's head."""

    @property
    def all_rows(self) -> Unit:
        """All of these rows."""

    @property
    def hidden(self) -> Tensor:
        """The residual stream at these rows: (rows, width), the model's dtype."""

    @property
    def tokens(self) -> Tensor:
        """The token that each row stands for, (rows,) int64; −1 for none."""

    def text_behind(self, unit: Unit) -> Tensor:
        """Return the columns of the text behind a unit, (words,) int64."""

    def note(self, name: str) -> Tensor:
        """Return the note of these rows with this name: (rows, …)."""

    def note_of(self, signal: Signal) -> Tensor:
        """Return what was noted of these rows by `LayerReader.note`: (rows, …)."""

    def text_note_of(self, signal: Signal, unit: Unit) -> Tensor:
        """Return what was noted of the text behind a unit by `LayerReader.note_text`."""

    def read(self, signal: Signal, unit: Unit) -> Tensor:
        """Return what a signal reads of a unit ahead of the layer: (rows, …)."""
