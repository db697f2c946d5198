"""Views: the tokens that a stage sees, where they come from, and the signals that the stage has declared.

A view holds plain tensors, so a stage runs without a model:

    LayerView(hidden=now, hidden_before=earlier)
    ImageView(features, attention=cls_row, keys=keys, grid=(24, 24))

A `TowerView` is what a family provides of an image in its vision tower; an `ImageView` is made from it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.signals import CachedAttention, OwnSignal, Signal, TowerSignal
from foveate.core.units import Arriving as Arriving
from foveate.errors import SettingError

Given = Tensor | Callable[[], Tensor]
"""A tensor, or a function that makes it on first use."""
OTHERS = {"columns", "pivots", "text"}
"""Kinds of signals before a decoder layer that have other rows than the tokens."""


class Undeclared(SettingError, AttributeError):
    """A stage reads a signal that it has not declared."""


class View:
    """Tokens at a stage, and the values that the stage reads of them.

    `view[signal]` is the tensor of a declared signal. If the stage reads only one signal of a kind, `view.attention`,
    `view.keys`, `view.hidden` and so on are the same.

    Args:
        tokens: Which tokens these are, (tokens,) int64: indices among those that entered, −1 for a row that stands for
            no token. None: all, in order.
        arriving: What the host knows of them. None: none has left yet.
        notes: Values that earlier stages of the same method remembered of these tokens, by name.
        signals: Tensors by signal.
        device: The device of the tensors. None: that of `tokens`.
        named: Tensors by kind, for a view made by hand.
    """

    def __init__(
        self,
        count: int,
        *,
        tokens: Given | None = None,
        arriving: Arriving | None = None,
        notes: Mapping[str, Tensor] | None = None,
        signals: Mapping[Signal, Given] | None = None,
        device: torch.device | None = None,
        **named: Given | None,
    ) -> None:
        self.arriving = arriving or Arriving.all_of(count)
        self.notes: Mapping[str, Tensor] = MappingProxyType(notes or {})
        self._count = count
        self._device = device
        self._tokens = tokens
        self._signals = dict(signals or {})
        self._named = {kind: value for kind, value in named.items() if value is not None}

    def __len__(self) -> int:
        return self._count

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self._device or self.tokens.device

    @property
    def tokens(self) -> Tensor:
        """Indices of these tokens among those that entered: (tokens,) int64, −1 for rows that stand for no token."""
        if self._tokens is None:
            self._tokens = torch.arange(self._count)
        elif not isinstance(self._tokens, Tensor):
            self._tokens = self._tokens()
        return self._tokens

    def __contains__(self, signal: Signal) -> bool:
        """True if the model has this signal, for signals that a model may lack (`Cls`, `Deepstack`)."""
        return signal in self._signals or signal.kind in self._named

    def __getitem__(self, signal: Signal) -> Tensor:
        """The tensor of a declared signal.

        Raises:
            SettingError: If the stage does not declare it.
        """
        if signal in self._signals:
            return self._make(self._signals, signal)
        if signal.kind in self._named:
            return self._make(self._named, signal.kind)
        raise self._refusal(signal)

    def __getattr__(self, kind: str) -> Tensor:
        if kind.startswith("_"):
            raise AttributeError(kind)
        if kind in self._named:
            return self._make(self._named, kind)
        alike = [signal for signal in self._signals if signal.kind == kind]
        if len(alike) == 1:
            return self._make(self._signals, alike[0])
        if alike:
            raise Undeclared(
                f"This stage reads several signals of kind {kind!r}. Name one of them, such as view[{alike[0]!r}]."
            )
        raise self._refusal(kind)

    def known(self) -> list[Tensor]:
        """The model's own values that were read so far."""
        values = (*self._signals.items(), *self._named.items())
        return [value for key, value in values if isinstance(value, Tensor) and not isinstance(key, OwnSignal)]

    @staticmethod
    def _make(values: dict[Any, Given], key: Any) -> Tensor:
        value = values[key]
        if not isinstance(value, Tensor):
            value = value()
            values[key] = value  # cache it
        return value

    def _refusal(self, what: object) -> Undeclared:
        counts = Counter(signal.kind for signal in self._signals)
        alone = [repr(signal) for signal in self._signals if counts[signal.kind] == 1]
        several = [f"{count} of kind {kind!r}" for kind, count in counts.items() if count > 1]
        there = ", ".join([*alone, *several, *self._named]) or "nothing"
        return Undeclared(f"This stage reads {what!r} without declaring it, or this model has none. Declared: {there}.")


class LayerView(View):
    """Vision tokens before a decoder layer: those of a sample, an image or a frame, depending on the stage's unit.

    Args:
        hidden: (tokens, width), the residual stream entering the layer.
        count: Number of tokens, if no tensor shows it.
        text_behind: True if text follows them in the prompt.
        rest: See `View`. By kind, for example `hidden_before`, (tokens, width), from some layers earlier, `attention`,
            (tokens,) float32, and `keys`, (tokens, head size) float32.
    """

    def __init__(
        self, hidden: Given | None = None, *, count: int | None = None, text_behind: bool = True, **rest: Any
    ) -> None:
        if count is None:
            # Take the length of the first tensor of these tokens. Functions that make a tensor are not called for it.
            values = {"hidden": hidden, **rest, **{key.kind: rows for key, rows in (rest.get("signals") or {}).items()}}
            count = next(len(rows) for kind, rows in values.items() if isinstance(rows, Tensor) and kind not in OTHERS)
        super().__init__(count, hidden=hidden, **rest)
        self.text_behind = text_behind


class PixelView(View):
    """The pixels of one image or video before the vision tower, token by token.

    Args:
        units: (frames, rows, columns, numbers) float32: the normalised pixels of each token's patches. For a video, a
            frame is a temporal patch, made of several images. For an image with tiles, each tile is a frame. If tokens
            are pooled from parts of patches, a unit is a patch.
        mean: What the processor subtracts from pixels in [0, 1], (numbers,).
        std: What it then divides them by, (numbers,).
        rest: See `View`.
    """

    def __init__(self, units: Tensor, mean: Tensor, std: Tensor, **rest: Any) -> None:
        super().__init__(math.prod(units.shape[:3]), device=units.device, **rest)
        self.units = units
        self.mean = mean
        self.std = std

    def levels(self) -> Tensor:
        """The pixels as in an image file: whole numbers from 0 to 255, in the shape of `units`, float32."""
        return (255 * (self.units * self.std + self.mean)).round().clamp(0, 255)


class PatchView(View):
    """One image's patches before a block of the vision tower.

    Args:
        patches: (patches, width), in raster order.
        grid: Their rows and columns. None if they form no single grid: some left earlier, or there are several frames
            or views.
        rest: See `View`.
    """

    def __init__(self, patches: Tensor, grid: Grid | None, **rest: Any) -> None:
        count = len(patches)
        rest.setdefault("arriving", Arriving(count, count, count, grids=() if grid is None else (grid,)))
        super().__init__(len(patches), device=patches.device, **rest)
        self.patches = patches
        self.grid = grid


class ImageView(View):
    """One image's tokens between the vision tower and the decoder.

    Args:
        features: (tokens, width).
        grid: Rows and columns of the tokens. None if they are not a single plain grid.
        grids: Rows and columns of each frame or view. By default those of `grid`.
        merged: True if an earlier stage has already merged some of them.
        rest: See `View`. By kind, for example `attention`, (tokens,) float32, `keys`, (tokens, head size) float32, and
            `cls`, (1, width), the tower's CLS state.
    """

    def __init__(
        self,
        features: Tensor,
        *,
        grid: Grid | None = None,
        grids: Sequence[Grid] = (),
        merged: bool = False,
        **rest: Any,
    ) -> None:
        self.grid = grid
        self.grids = tuple(grids)
        if not self.grids and grid is not None:
            self.grids = (grid,)
        count = len(features)
        rest.setdefault("arriving", Arriving(count, count, count, grids=self.grids))
        super().__init__(count, features=features, **rest)
        self.features = features
        self.merged = merged


class ReadView(View):
    """One sample's vision tokens in a decoder layer's cache.

    Args:
        attention: (tokens,) float32, see `CachedAttention`.
        attention_before: `attention` of the previous decode step. Zeros in an answer's first step, and for once-a-turn
            stages.
        read_before: (tokens,) bool, which of them the previous step read. All False before the first step.
        rest: See `View`.
    """

    def __init__(
        self, attention: Tensor, attention_before: Tensor | None = None, read_before: Tensor | None = None, **rest: Any
    ) -> None:
        rest.setdefault("signals", {CachedAttention(): attention})
        super().__init__(len(attention), **rest)
        self.attention_before = torch.zeros_like(attention) if attention_before is None else attention_before
        none = torch.zeros_like(attention, dtype=torch.bool)
        self.read_before = none if read_before is None else read_before


@dataclass(slots=True)
class TowerView:
    """One image in the vision tower, or just after it.

    Attributes:
        features: (tokens, width), the features to reduce: the tower's features on their way to the projector, or the
            vision tokens after it if the projector pools or merges (Qwen2-VL, OneVision).
        grid: Rows and columns of the tokens. None if they are not a single plain grid.
        cls: The CLS state, (1, width), if the tower has one and it may become a token; else None.
        read: Returns the tensor of a signal that the stage reads, for each token: attention as (tokens, 1) float32,
            keys as (tokens, size) float32.
        merge: The cut that a stage inside the tower made of the patches, if any; the tokens are then the merged ones.
        entered: Vision tokens that the image has in the prompt, newlines and the like included. Shares refer to this
            count.
        reserved: Rows that the family adds itself (a closing newline), to be subtracted from a fixed count.
        grids: Rows and columns of each frame or view, in order. Empty if they are not known.
        deepstack: Makes the features that the tower adds to each token after the first decoder layers, (tokens, layers
            · width). None if there are none.
        early: True if a stage inside the tower has seen the patches, even if it merged none.
        made: Returns the tower's features of each token, (tokens, width), if `features` are after the projector. None
            if the family does not provide them.
        video: True if it is a video. None: as the others of its call.
    """

    features: Tensor
    grid: tuple[int, int] | None
    cls: Tensor | None
    read: Callable[[TowerSignal], Tensor]
    merge: Cut | None = None
    entered: int = 0
    reserved: int = 0
    grids: tuple[Grid, ...] = ()
    deepstack: Callable[[], Tensor] | None = None
    early: bool = False
    made: Callable[[], Tensor] | None = None
    video: bool | None = None

    def __len__(self) -> int:
        return self.features.shape[0]
