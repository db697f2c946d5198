"""What passes between the engine and the stages' adapter: a sample's vision rows, and what becomes of them.

These are the engine's own, with batches and places in it; a method sees `foveate.core.views` and answers with
`foveate.core.cut.Cut`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

__all__ = ["EngineCut", "EngineView", "Heads", "Queries"]

Queries = Literal["vision", "after", "last"]
Heads = Literal["mean", "max"]


@dataclass(slots=True)
class EngineView:
    """One sample's vision rows as they stand before a decoder layer, or while it attends.

    Attributes:
        layer: The decoder layer (0-based).
        sample_tokens: Which tokens of the sample are left, in row order: (…,) int64, −1 for a row that is no token of
            its own.
        rows: Which of these rows the view is of; None: all.
        read: Returns the residual stream entering the layer at these rows, (rows, width), model dtype.
        entered: How many vision tokens the sample had when it entered the model.
        sizes: How many rows belong to each image or video, in order (to each frame, where a stage goes by frame); None
            once a cut ranked over all of them together, since only the device knows then.
        entered_sizes: How many vision tokens each of these images had when it entered the model.
        started_sizes: How many rows of each of them entered the decoder.
        notes: A tensor a name whose first dimension is the rows. The engine cuts them with the tokens.
        attend: Where attention rows come from.
        keys_of: Returns the layer's keys at these rows.
        text_after: Whether text comes after each of the images.
        in_sample: Vision tokens of the whole sample as they entered, where these are a part of it.
        several_frames: Whether `sizes` are those of frames, and an image has several.
    """

    layer: int
    sample_tokens: Tensor
    read: Callable[[], Tensor]
    entered: int
    sizes: tuple[int, ...] | None = None
    entered_sizes: tuple[int, ...] = ()
    started_sizes: tuple[int, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)
    attend: Callable[[Queries, int, int, bool, Heads], Iterator[Tensor]] | None = None
    keys_of: Callable[[], Tensor] | None = None
    text_after: tuple[bool, ...] = ()
    in_sample: int | None = None
    several_frames: bool = False
    rows: slice | None = None
    _hidden: Tensor | None = None
    _keys: Tensor | None = None

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the layer at these rows: (rows, width), model dtype."""
        if self._hidden is None:
            self._hidden = self.read()
        return self._hidden

    @property
    def keys(self) -> Tensor:
        """The layer's keys after RoPE at these rows, mean over heads: (rows, head size) float32."""
        assert self.keys_of is not None
        if self._keys is None:
            self._keys = self.keys_of()
        return self._keys

    def attention(self, queries: Queries, both_ways: bool = False, heads: Heads = "mean") -> Iterator[Tensor]:
        """Attention that the layer pays to these rows: (some rows, these) float32, blocks of rows in order."""
        assert self.attend is not None
        start = 0 if self.rows is None else self.rows.start
        yield from self.attend(queries, start, start + len(self), both_ways, heads)

    @property
    def tokens(self) -> Tensor:
        """Which tokens these rows are: (rows,) int64."""
        return self.sample_tokens if self.rows is None else self.sample_tokens[self.rows]

    def __len__(self) -> int:
        return self.sample_tokens.shape[0] if self.rows is None else self.rows.stop - self.rows.start

    def images(self) -> "list[EngineView]":
        """A view of each image (or frame) by itself; only where their sizes are known."""
        assert self.sizes is not None
        if len(self.sizes) == 1:
            return [self]
        after = self.text_after or (True,) * len(self.sizes)
        views, start = [], 0
        for size, entered, started, text in zip(self.sizes, self.entered_sizes, self.started_sizes, after, strict=True):
            views.append(self._part(start, start + size, entered, started, text))
            start += size
        return views

    def _part(self, start: int, stop: int, entered: int, started: int, text: bool) -> "EngineView":
        return dataclasses.replace(
            self,
            rows=slice(start, stop),
            read=lambda: self.hidden[start:stop],
            keys_of=lambda: self.keys[start:stop],
            entered=entered,
            in_sample=self.entered,
            sizes=(stop - start,),
            entered_sizes=(entered,),
            started_sizes=(started,),
            text_after=(text,),
            notes=_Parts(self.notes, start, stop),
            _hidden=None,
            _keys=None,
        )


class _Parts(dict[str, Tensor]):
    """Some rows of notes, taken when they are asked for."""

    def __init__(self, notes: Mapping[str, Tensor], start: int, stop: int) -> None:
        super().__init__(notes)
        self._rows = slice(start, stop)

    def __getitem__(self, name: str) -> Tensor:
        return super().__getitem__(name)[self._rows]


@dataclass(frozen=True, slots=True, eq=False)
class EngineCut:
    """What becomes of a sample's vision rows.

    Attributes:
        kept: Which of the view's tokens the rows stand for, in row order: (rows,) int64. Ascending where no `rows` are
            given; −1 for a row that is no token of its own. Or which of them stay, (tokens,) bool, where how many they
            are depends on what there is to see: the engine then asks the device, once for the whole batch.
        sizes: How many of them belong to each image or video, if that is known. Needed with `rows`.
        rows: The new rows, (rows, width), where rows are merged or reordered; None: the tokens stay as they are.
        assign: (tokens,) int64, the row each of the view's tokens went into, −1 if it was dropped; None without
            `rows`.
        notes: What is to be remembered of the rows, a tensor a name whose first dimension is the rows.
    """

    kept: Tensor
    sizes: tuple[int, ...] | None = None
    rows: Tensor | None = None
    assign: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)
