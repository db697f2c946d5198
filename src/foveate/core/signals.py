"""Signals: what a stage may read. A method declares them, and the runner computes only what was declared.

A signal is a value: two equal signals are read once. It says which tensor the stage gets, from which layers, and how it
is read (`foveate.core.reading`). The tables in the docs are generated from this file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor

from foveate.core.attention import attention_rows
from foveate.core.author import Author
from foveate.core.reading import LayerReader, LayerRows, Signal as Signal
from foveate.core.units import Unit
from foveate.errors import SettingError

AtLeastOne = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Hidden(Signal):
    """The residual stream entering the layer, `view.hidden`, and `back` layers earlier, `view.hidden_before`.

    Shape: (tokens, width), the model's dtype. With back=0 there is no `hidden_before`.
    """

    kind: ClassVar[str] = "hidden"

    back: Annotated[int, Ge(0)] = 0

    @property
    def layers_back(self) -> int:
        return self.back


@dataclass(frozen=True)
class Attention(Signal):
    """Attention that a decoder layer pays to the tokens, float32, after a softmax over everything a row sees.

    Attributes:
        rows: The tokens that pay it. "last" is the prompt's last token; "after" is all text after the tokens' own
            image, template included; "but_last" that text without its last token; "null" its first token; "raters"
            those of its tokens that resemble the image; "vision" the vision tokens themselves. Raters: each token of
            that text has a share, the softmax over the text of its product with an image token (both as they enter the
            decoder), mean over the image's tokens. It is a rater if its share is above the mean share. If none is
            above, all are raters.
        layer: The layer that just "ran", which costs almost nothing, or the "next" one, whose queries and keys are then
            computed twice.
        heads: The "mean" over the heads; the "max" over the heads, each reduced over its rows first; or the mean over
            the "busiest" heads, those that pay the tokens most over all rows. "busiest" needs over="mean" or "sum" and
            rows that are not renormalised.
        busiest: How many heads are the busiest; all if there are fewer. None: half of them, rounded up.
        over: How rows are reduced: their "mean", "sum", or "max"; or the "share", which is the sum divided by the sum
            over all tokens of the image. Shape (tokens,).
        renormalise: First make each row sum to 1 over the tokens.
        both_ways: Let vision rows also attend to later vision tokens.
        sample: Use only this many of an image's vision rows, spread evenly over the remaining ones; `over` reduces
            these. None, or at least as many as there are: all rows.
        without_distance: First divide each row's attention to a token by the effect of RoPE at their distance. That is
            the product of two vectors of ones, rotated to their positions, divided by that product at equal positions.
            It falls from 1 with distance, and below 0 far off, so the divisor is at least 0.05.

    Raises:
        SettingError: If `sample` is below 1 or the rows are not "vision", or the busiest heads are not available.
    """

    kind: ClassVar[str] = "attention"

    rows: Literal["last", "after", "but_last", "null", "raters", "vision"] = "last"
    layer: Literal["ran", "next"] = "ran"
    heads: Literal["mean", "max", "busiest"] = "mean"
    over: Literal["mean", "sum", "max", "share"] = "mean"
    renormalise: bool = False
    both_ways: bool = False
    sample: AtLeastOne | None = None
    without_distance: bool = False
    busiest: AtLeastOne | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.busiest is not None and self.heads != "busiest":
            raise SettingError(f"Attention: busiest={self.busiest} needs heads='busiest'; got heads={self.heads!r}.")
        if self.heads == "busiest" and (self.renormalise or self.over not in ("mean", "sum")):
            raise SettingError(
                "Attention: heads='busiest' needs over='mean' or 'sum', and renormalise=False; "
                f"got over={self.over!r}, renormalise={self.renormalise}."
            )
        if self.sample is not None and self.rows != "vision":
            raise SettingError(f"Attention: only rows='vision' can be sampled; got rows={self.rows!r}.")

    @property
    def reads_text(self) -> bool:  # type: ignore[override]  # depends on the rows
        return self.rows != "vision"

    @property
    def of_ran(self) -> bool:  # type: ignore[override]  # depends on the layer
        return self.layer == "ran"

    @property
    def ahead(self) -> bool:  # type: ignore[override]  # depends on the layer
        return self.layer == "next"

    @property
    def by_image(self) -> bool:  # type: ignore[override]  # the text behind each image asks
        return self.rows != "last"

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        return reader.attention(self, unit)

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        if self.ahead:
            return rows.read(self, unit)  # shares are those of the stage's unit
        return super().of_rows(rows, unit)


@dataclass(frozen=True)
class CachedAttention(Signal):
    """Attention to cached vision tokens, for stages of decoding: (tokens,) float32.

    Probabilities after a softmax over everything a row sees, mean over heads, summed over the rows that ask. Once a
    turn, these rows are the turn's text after its last vision token, in the stage's own layer. In each decode step, it
    is the new row, in the layer before.
    """

    kind: ClassVar[str] = "attention"
    reads_text: ClassVar[bool] = True


@dataclass(frozen=True)
class Keys(Signal):
    """The next decoder layer's keys of the tokens after RoPE, mean over heads: (tokens, head size) float32."""

    kind: ClassVar[str] = "keys"
    ahead: ClassVar[bool] = True

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        return reader.keys()[:, reader.vision].float().mean(dim=0)


@dataclass(frozen=True)
class KeyNorms(Signal):
    """L1 norm of each token's key in the layer that just ran, after RoPE, over all key heads: (tokens,) float32."""

    kind: ClassVar[str] = "key_norms"
    of_ran: ClassVar[bool] = True

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        return _norms(reader.keys())[reader.vision]


@dataclass(frozen=True)
class Normed(Signal):
    """The residual stream entering the layer, after the norm in front of the model's head: (tokens, width)."""

    kind: ClassVar[str] = "normed"

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        return rows.norm(unit.of(rows.hidden))


@dataclass(frozen=True)
class Pivots(Signal):
    """The text after the tokens' image with the largest key norms in the layer that just ran, in the form of `Normed`.

    Shape: (count, width), the largest norm first. If there is less text than `count`, it is repeated from the start. If
    there is none, rows are zero.
    """

    kind: ClassVar[str] = "pivots"
    of_ran: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    count: AtLeastOne = 4

    def note(self, reader: LayerReader) -> None:
        reader.note_text(self, partial(_pivots_of, reader, self.count))

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        columns = rows.text_note_of(self, unit)
        return rows.norm(rows.stream[columns.clamp(min=0)]) * (columns >= 0)[:, None]


@dataclass(frozen=True)
class Products(Signal):
    """Products of the next layer's queries of the text with the tokens' keys, before RoPE: (tokens, heads) float32.

    The mean over the text after the sample's last image of q · k / √(head size), without a softmax, after the layer's
    norms of queries and keys. Keys are repeated for heads that share one. Zeros if there is no such text.

    Attributes:
        leave_out: How many rows of that text to ignore, at its beginning and at its end: the end-of-image marker, and
            the template after the question. If no other rows are left, none is ignored.

    Raises:
        SettingError: If these are not two integers, 0 or more.
    """

    kind: ClassVar[str] = "products"
    ahead: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    leave_out: tuple[Annotated[int, Ge(0)], Annotated[int, Ge(0)]] = (1, 5)

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        asking, real = reader.text_behind(unit)
        if real is None:
            real = torch.ones_like(asking)
        first, last = self.leave_out
        place, number = real.cumsum(dim=0), real.sum()  # real 0 1 1 gives place 0 1 2, number 2
        inner = (place > first) & (place <= number - last) & (real != 0)
        asks = torch.where(inner.any(), inner, real != 0)[None, :, None]
        queries, keys = reader.before_rope(asking)  # (heads, asking, size), (key heads, all rows, size)
        number = asks.sum(dim=1).clamp(min=1)
        mean = (queries.float() * asks).sum(dim=1) / number  # (heads, size): the products are linear in it
        keys = keys[:, reader.vision].float()
        grouped = mean.view(len(keys), -1, mean.shape[-1])  # (key heads, heads of each, size)
        products: Tensor = (keys @ grouped.mT).transpose(0, 1).flatten(1)  # (rows, heads)
        return products / math.sqrt(mean.shape[-1])


@dataclass(frozen=True)
class Text(Signal):
    """The text after the tokens' image as it enters the layer, template included: (words, width), the model's dtype.

    Before layer 0 these are its embeddings. For tokens of several images it is the text after the last of them.
    """

    kind: ClassVar[str] = "text"
    reads_text: ClassVar[bool] = True

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        return rows.stream[rows.text_behind(unit)]


@dataclass(frozen=True)
class ValueLikeness(Signal):
    """Similarity of the tokens' values in the layer that just ran to those of the text: (tokens, 2) float32.

    Column 0 is for the text after the image, column 1 for that text and the image's seeds together. Zeros if there is
    no such text. The likeness to a text row is softmax(v · v_token / √(head size)) over everything the row is compared
    with, mean over key heads. A column is the mean over its rows. Seeds are the tokens with the highest column 0.

    Attributes:
        skip: How many rows to ignore at the beginning of that text. If there are no more than these, none is ignored.
        seeds: Number of seeds as a share of the image's tokens: rounded, at least one.
        among: What the softmax is over: the "image", or "all" rows of the prompt.

    Raises:
        SettingError: If `skip` is below 0, or `seeds` is not in (0, 1].
    """

    kind: ClassVar[str] = "value_likeness"
    of_ran: ClassVar[bool] = True
    by_image: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    skip: Annotated[int, Ge(0)] = 2
    seeds: Annotated[float, Gt(0), Le(1)] = 0.01
    among: Literal["image", "all"] = "image"

    def seed_count(self, tokens: int) -> int:
        """The number of seeds among `tokens` tokens."""
        return max(1, round(self.seeds * tokens))

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        own = reader.vision[unit.rows]
        if unit.text_after == (False,):
            return own.new_zeros(len(own), 2, dtype=torch.float32)
        asking, real = reader.text_behind(unit)
        asks = torch.ones_like(asking) if real is None else real.long()
        # Leave out the first `skip` asking rows, unless none is left then: asks 0 1 1 1 with skip 1 gives 0 0 1 1.
        skipped = asks * (asks.cumsum(dim=0) > self.skip)
        asks = torch.where(skipped.any(), skipped, asks)
        of_text = self._sum(reader, own, asking, asks)
        number = asks.sum()
        first = of_text / number.clamp(min=1)
        # The rows most alike to the text ask too, for the second column.
        seeds = first.sort(descending=True, stable=True).indices[: self.seed_count(len(unit))]
        of_seeds = self._sum(reader, own, own[seeds], torch.ones_like(seeds))
        return torch.stack((first, (of_text + of_seeds) / (number + len(seeds))), dim=-1) * (number > 0)

    def _sum(self, reader: LayerReader, own: Tensor, asking: Tensor, asks: Tensor) -> Tensor:
        """Sum the likeness of rows that ask, (asking,) int64 with weights 0 or 1, to an image's rows."""
        with_whom = values = reader.values()
        visible: Callable[[slice], Tensor] | None = None
        if self.among == "image":
            with_whom = values[:, own]
        elif (seen := reader.real()) is not None:  # every row sees the same
            visible = lambda _: seen[None, None]  # noqa: E731
        scaling = 1 / math.sqrt(values.shape[-1])
        blocks = attention_rows(values[:, asking], with_whom, scaling, reader.block, visible)
        total, done = torch.zeros_like(own, dtype=torch.float32), 0
        for block in blocks:
            alike = block.mean(dim=0)  # (some, rows compared with)
            if self.among != "image":
                alike = alike[:, own]
            total += (alike * asks[done : done + len(alike), None]).sum(dim=0)
            done += len(alike)
        return total


@dataclass(frozen=True)
class OwnSignal(Signal):
    """The result of your own function of the layer that just ran: (tokens,) or (tokens, any).

    Attributes:
        make: The function. It gets the tensors that `of` names, in that order, for the tokens of one image, in the
            model's dtype. It returns one row for each token.
        of: "queries" and "keys" after RoPE, and "values": each (heads, tokens, head size), keys and values with their
            own number of heads; "hidden", the input of that layer: (tokens, width).

    Raises:
        SettingError: If `make` is not a function, or `of` is not a tuple of these names.
    """

    kind: ClassVar[str] = "own"
    of_ran: ClassVar[bool] = True
    by_image: ClassVar[bool] = True

    make: Callable[..., Tensor]
    of: Annotated[tuple[Literal["queries", "keys", "values", "hidden"], ...], MinLen(1)] = ("values",)
    # The method that it belongs to; set by the method, and no part of the signal's value.
    author: Author = field(default=Author("OwnSignal"), compare=False, repr=False)

    def __str__(self) -> str:
        return f"OwnSignal({getattr(self.make, '__qualname__', 'make')}, of={self.of})"

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        own = reader.vision[unit.rows]
        tensors = {
            "queries": lambda: reader.queries(own),
            "keys": lambda: reader.keys()[:, own],
            "values": lambda: reader.values()[:, own],
            "hidden": lambda: unit.of(reader.entering()),
        }
        return self.call([tensors[name]() for name in self.of])

    def call(self, tensors: Sequence[Tensor]) -> Tensor:
        """Call the function on the tensors of an image's tokens.

        Raises:
            MethodError: If it fails, or the result is not one finite row for each token.
        """
        tokens = tensors[0].shape[-2]
        try:
            values = self.make(*tensors)
        except Exception as error:
            raise self.author.fault(f"the signal {self}", error) from error
        if not isinstance(values, Tensor) or values.dim() not in (1, 2) or len(values) != tokens or values.is_complex():
            wanted = f"real numbers, a row for each of the {tokens} tokens: ({tokens},) or ({tokens}, any)"
            raise self.author.wrong(f"the signal {self}", wanted, values)
        self.author.check_finite(f"the signal {self}", values, tensors)
        return values


@dataclass(frozen=True, kw_only=True)
class TowerSignal(Signal):
    """A value from one block of the vision tower. A token made of several patches has the mean of its patches.

    Attributes:
        layer: The block, counted from the one whose output goes to the projector (0). 1 is the block after it, if there
            is one.
        block: Instead of `layer`: the index of the block in the tower, from 0 on. A model whose tower has fewer blocks,
            or whose block uses window attention, refuses the method.
        of: The number of blocks in the tower that `block` is meant for. In another tower it is the block at the same
            relative depth: the 9th of 24 is the 12th of 32. If only some blocks attend to the whole image (Qwen2.5-VL),
            it is the nearest of these, of two the later.
        heads: "split": as the model attends. "joined": all heads' queries, and all their keys, side by side as one
            head, scaled by 1 / √width.
    """

    layer: Literal[0, 1] = 0
    block: Annotated[int, Ge(0)] | None = None
    of: AtLeastOne | None = None
    heads: Literal["split", "joined"] = "split"

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self).__name__
        if self.block is not None and self.layer:
            raise SettingError(f"{kind} takes either layer or block; got layer={self.layer} and block={self.block}.")
        if self.of is not None and (self.block is None or self.block >= self.of):
            raise SettingError(f"{kind}: of={self.of} needs a block below it; got block={self.block}.")


@dataclass(frozen=True)
class TowerAttention(TowerSignal):
    """Attention in the vision tower to each token: (tokens,) float32. A CLS pays attention but has no value itself.

    Attributes:
        by: The rows that pay it: the "cls" row, summed over heads; or all rows ("patches"), a CLS included, the mean
            over heads and rows.
        layer, block, of, heads: See `TowerSignal`.
    """

    kind: ClassVar[str] = "attention"

    by: Literal["cls", "patches"] = "cls"


@dataclass(frozen=True)
class TowerKeys(TowerSignal):
    """Keys of the vision tower before RoPE: (tokens, head size) float32, the mean over heads.

    If heads are "joined", (tokens, width).
    """

    kind: ClassVar[str] = "keys"


@dataclass(frozen=True)
class Cls(Signal):
    """The tower's CLS state beside the features: (1, width). Only useful for a row without a position."""

    kind: ClassVar[str] = "cls"


@dataclass(frozen=True)
class Deepstack(Signal):
    """Features that Qwen3-VL's tower adds to tokens after the first decoder layers: (tokens, layers · width).

    Layers are side by side. Only for stages before the decoder; other models have none.
    """

    kind: ClassVar[str] = "deepstack"


@dataclass(frozen=True)
class Columns(Signal):
    """The columns of the tokens in their sample's prompt: (tokens + pivots,) int64.

    Earlier turns count, padding does not.

    Attributes:
        pivots: Number of text columns appended after those of the tokens: the text of `Pivots`, in its order. −1 if
            there is no text.
    """

    kind: ClassVar[str] = "columns"
    of_ran: ClassVar[bool] = True

    pivots: int = 0

    @property
    def reads_text(self) -> bool:  # type: ignore[override]  # depends on the pivots
        return self.pivots > 0

    def read(self, reader: LayerReader, unit: Unit) -> Tensor:
        return reader.in_prompt(reader.vision_columns)

    def note(self, reader: LayerReader) -> None:
        super().note(reader)
        if self.pivots:
            reader.note_text(self, lambda unit: reader.in_prompt(_pivots_of(reader, self.pivots, unit)))

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        columns = super().of_rows(rows, unit)
        if self.pivots:
            return torch.cat((columns, rows.text_note_of(self, unit)))
        return columns


@dataclass(frozen=True)
class Rotary(Signal):
    """Mean cosine and mean sine of the angles by which RoPE rotates each token: (tokens, 2) float64.

    float32 on Apple's GPUs. Only before decoder layers. Positions are those with which tokens entered, whatever was
    dropped since, counted from the sample's first token without padding. With M-RoPE it is the mean over all axes, each
    with all angles, however layers combine them. Values are multiples of 2⁻⁴⁰, so that places with the same mean tie. A
    layer without RoPE has the values of the next layer with RoPE.
    """

    kind: ClassVar[str] = "rotary"


@dataclass(frozen=True)
class Features(Signal):
    """The image's tokens before the projector: (tokens, width).

    The tower's features of a LLaVA-NeXT or LLaVA-OneVision image are packed like its tokens. If a family does not
    provide them (Qwen-VLs, videos), the stage gets the features after the projector.
    """

    kind: ClassVar[str] = "features"


@dataclass(frozen=True)
class Cells(Signal):
    """Frame (or view), row and column of each token as it entered: (tokens, 3) int64, −1 for a token on no grid.

    If the stage's unit is an image and none of its tokens has left, `view.arriving.grids` has the rows and columns of
    its frames. Only before decoder layers.
    """

    kind: ClassVar[str] = "cells"

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        none = unit.of(rows.tokens) < 0  # a row without a token has no cell
        return unit.of(rows.note(self.kind)).masked_fill(none[:, None], -1)


@dataclass(frozen=True)
class Resource(Signal):
    """The output of an object passed by name, with `foveate.drop(…, resources={name: …})`.

    Attributes:
        name: Its name. A method finds all passed names in `Shape.resources`.
        of: "features": its function `features` gets the image's tokens before the projector, (tokens, width), and
            returns (tokens, any). "text": its function `text` gets the ids of the text that `Text` has, (words,) int64,
            and returns one tensor, whose shape is the same for every text.
    """

    kind: ClassVar[str] = "resource"

    name: str = ""
    of: Literal["features", "text"] = "features"

    @property
    def reads_text(self) -> bool:  # type: ignore[override]  # depends on what it is of
        return self.of == "text"

    def of_rows(self, rows: LayerRows, unit: Unit) -> Tensor:
        return rows.text_note_of(self, unit)


def _norms(keys: Tensor) -> Tensor:
    """L1 norms of the keys of all rows, (key heads, rows, head size) -> (rows,) float32."""
    wide = torch.promote_types(keys.dtype, torch.float32)  # torch refuses to narrow
    norms: Tensor = torch.linalg.vector_norm(keys, ord=1, dim=(0, 2), dtype=wide)
    return norms.float()


def _pivots_of(reader: LayerReader, count: int, unit: Unit) -> Tensor:
    """Columns of the text behind a unit with the largest key norms, largest first: (count,) int64.

    If there is less text, they repeat from the first; without text −1.
    """
    none = reader.columns.new_full((count,), -1)
    if unit.text_after == (False,) or not len(unit):
        return none
    asking, real = reader.text_behind(unit)
    if not len(asking):
        return none
    norms, number = _norms(reader.keys())[asking], torch.full_like(asking[:1], len(asking))
    if real is not None:
        norms, number = norms.masked_fill(~real, -1), real.sum(dim=0, keepdim=True)
    order = norms.sort(descending=True, stable=True).indices
    places = torch.arange(count, device=order.device) % number.clamp(min=1)  # 4 pivots of 3 rows: 0 1 2 0
    return torch.where(number > 0, reader.columns[asking[order[places]]], none)
