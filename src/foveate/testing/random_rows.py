"""Random rows of a decoder layer, of which a signal reads its tensor for a test of a stage."""

from collections.abc import Callable

import torch
from torch import Tensor

from foveate.core.reading import LayerReader, Signal
from foveate.core.units import Arriving, Unit

WIDTH, HEAD, WORDS, HEADS = 8, 4, 5, 2
"""The stream's width, the size of a head, the rows of text behind the tokens, and the number of heads."""


def read_randomly(signal: Signal, tokens: int, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Return what a signal reads of random rows: of `tokens` tokens and some text behind them."""
    reader = RandomReader(tokens, dtype, random)
    if signal.of_ran:
        signal.note(reader)
    return signal.of_rows(RandomRows(reader), reader.unit)


class RandomReader(LayerReader):
    """A layer whose queries, keys and values are random.

    Attributes:
        unit: All of its tokens.
        notes: Of each signal what it noted of the tokens.
        text_notes: Of each signal what it noted of the text.
    """

    def __init__(self, tokens: int, dtype: torch.dtype, random: torch.Generator) -> None:
        rows = tokens + WORDS
        vision = torch.arange(tokens)
        super().__init__(torch.arange(rows), vision, vision, WIDTH)
        self.unit = Unit(slice(0, tokens), Arriving.all_of(tokens), (True,))
        self.notes: dict[Signal, Tensor] = {}
        self.text_notes: dict[Signal, Tensor] = {}
        self.stream = torch.randn(rows, WIDTH, generator=random).to(dtype)
        self._heads = torch.randn(3, HEADS, rows, HEAD, generator=random).to(dtype)
        self._paid = torch.rand(tokens, generator=random).softmax(dim=0)

    def queries(self, asking: Tensor) -> Tensor:
        return self._heads[0][:, asking]

    def keys(self) -> Tensor:
        return self._heads[1]

    def values(self) -> Tensor:
        return self._heads[2]

    def entering(self) -> Tensor:
        return self.stream[self.vision]

    def before_rope(self, asking: Tensor) -> tuple[Tensor, Tensor]:
        return self.queries(asking), self.keys()

    def attention(self, signal: Signal, unit: Unit) -> Tensor:
        return self._paid[unit.rows]

    def text_behind(self, unit: Unit) -> tuple[Tensor, Tensor | None]:
        return self.columns[len(self.vision) :], None

    def real(self) -> Tensor | None:
        return None

    def in_prompt(self, columns: Tensor) -> Tensor:
        return columns

    def note(self, signal: Signal) -> None:
        self.notes[signal] = signal.read(self, self.unit)

    def note_text(self, signal: Signal, of_image: Callable[[Unit], Tensor]) -> None:
        self.text_notes[signal] = of_image(self.unit)


class RandomRows:
    """The rows of a `RandomReader` before a layer; see `LayerRows`."""

    def __init__(self, reader: RandomReader) -> None:
        self._reader = reader
        self.stream = reader.stream
        self.all_rows = reader.unit
        self.hidden = reader.entering()
        self.tokens = reader.vision

    def norm(self, rows: Tensor, /) -> Tensor:
        return rows

    def text_behind(self, unit: Unit) -> Tensor:
        return self._reader.text_behind(unit)[0]

    def note(self, name: str) -> Tensor:
        raise KeyError(name)

    def note_of(self, signal: Signal) -> Tensor:
        return self._reader.notes[signal]

    def text_note_of(self, signal: Signal, unit: Unit) -> Tensor:
        return self._reader.text_notes[signal]

    def read(self, signal: Signal, unit: Unit) -> Tensor:
        return signal.read(self._reader, unit)
