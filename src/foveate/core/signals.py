"""What a stage may read: declared here by the method, computed by whoever runs it, and reduced on the way.

A signal is a value: two that are equal are read once. Every one says which tensor the stage gets for it, from which
layers, and what that costs. A new one is declared here; the tables are made of this.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from foveate.errors import SettingError

OF_LAYER = ("queries", "keys", "values", "hidden")
"""What an `OwnSignal` may be made of."""


@dataclass(frozen=True)
class Signal:
    """Something that a stage reads.

    Raises:
        SettingError: If an option is given a value that it does not have.
    """

    kind: ClassVar[str]
    """What a view calls it: `view.attention` for `Attention`."""
    of_ran: ClassVar[bool] = False
    """Whether it is made of queries or keys of the layer before the stage, while that layer attends."""
    reads_text: ClassVar[bool] = False
    """Whether the prompt's text decides its value."""
    least: ClassVar[Mapping[str, int]] = {}
    """Options that are whole numbers, and the smallest that each may be; None passes where it is the default."""

    def __post_init__(self) -> None:
        refuse_other_options(self)
        for name, least in self.least.items():
            value, default = getattr(self, name), getattr(type(self), name)
            if (type(value) is not int or value < least) and (value is not None or default is not None):
                raise SettingError(
                    f"{type(self).__name__}: {name} must be a whole number, {least} or more"
                    f"{', or None' if default is None else ''}; got {value!r}."
                )

    @property
    def layers_back(self) -> int:
        """How many layers must have run before a stage can read it."""
        return int(self.of_ran)

    def queries(self, tokens: int, images: Sequence[int]) -> int | None:
        """Rows of the coming layer whose queries are computed for it alone, beside all keys; None: it needs neither.

        Args:
            tokens: Vision tokens that arrive at the stage.
            images: How many these are of each image.
        """
        return None


@dataclass(frozen=True)
class Hidden(Signal):
    """The residual stream entering the layer, `view.hidden`, and `back` layers earlier, `view.hidden_before`.

    Shape: (tokens, width), the model's dtype. With back=0 there is no earlier one.
    """

    kind: ClassVar[str] = "hidden"
    least: ClassVar[Mapping[str, int]] = {"back": 0}

    back: int = 0

    @property
    def layers_back(self) -> int:
        return self.back


@dataclass(frozen=True)
class Attention(Signal):
    """Attention that a decoder layer pays to the tokens: float32 probabilities after a softmax over all a row sees.

    Attributes:
        rows: The tokens that pay it: "last" is the prompt's last token, "after" is all text after the tokens' own
            image, template included, "but_last" that text without its last token, "null" its first token, "raters"
            those of it that resemble the image, "vision" the vision tokens themselves. A token of that text is a rater
            if its share in the softmax of image · text over the text, mean over the image's tokens, is above the mean
            of these shares; the products are those of what enters the decoder. Where none is above, all are raters.
        layer: The layer that just "ran", which costs almost nothing, or the "next" one, whose queries and keys are
            computed a second time.
        heads: The "mean" over the heads; or the "max" of what each comes to over its rows; or the mean over the
            "busiest", those that pay the tokens most over all rows. The busiest need the "mean" or "sum" of rows that
            are not renormalised.
        busiest: How many heads are the busiest, or all where there are fewer; None: the half of them, rounded up.
        over: How rows are reduced: their "mean", "sum", or "max"; or the "share", the sum divided by what all tokens of
            the image get. Shape (tokens,).
        renormalise: First make each row sum to 1 over the tokens.
        both_ways: Vision rows also attend to later vision tokens.
        sample: So many of an image's vision rows pay, spread evenly over those that are left, instead of all; "mean",
            "sum", "max" and "share" are over these. None, or no fewer than there are: all.
        without_distance: First divide what a row pays to a token by what RoPE alone makes of their distance: the
            product of two vectors of ones, turned to their positions, over that at one position. It falls from 1 with
            distance, and far off goes below 0; so no less than 0.05 divides.

    Raises:
        SettingError: If `sample` is below 1, or the rows are not "vision", or no heads can be the busiest.
    """

    kind: ClassVar[str] = "attention"
    least: ClassVar[Mapping[str, int]] = {"sample": 1, "busiest": 1}

    rows: Literal["last", "after", "but_last", "null", "raters", "vision"] = "last"
    layer: Literal["ran", "next"] = "ran"
    heads: Literal["mean", "max", "busiest"] = "mean"
    over: Literal["mean", "sum", "max", "share"] = "mean"
    renormalise: bool = False
    both_ways: bool = False
    sample: int | None = None
    without_distance: bool = False
    busiest: int | None = None

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

    def queries(self, tokens: int, images: Sequence[int]) -> int | None:
        if self.layer == "ran":
            return None
        if self.rows != "vision":
            return 1  # text rows count as a single one
        if self.sample is None:
            return tokens
        return sum(min(size, self.sample) for size in images)


@dataclass(frozen=True)
class CachedAttention(Signal):
    """Attention that reaches cached vision tokens, for stages of decoding: (tokens,) float32.

    Probabilities after a softmax over all that a row sees, mean over heads, summed over the rows that ask. Once a turn
    these are the turn's text behind its last vision token, in the stage's own layer; in each step the new row, in the
    layer before.
    """

    kind: ClassVar[str] = "attention"
    reads_text: ClassVar[bool] = True


@dataclass(frozen=True)
class Keys(Signal):
    """The next decoder layer's keys of the tokens after RoPE, mean over heads: (tokens, head size) float32."""

    kind: ClassVar[str] = "keys"

    def queries(self, tokens: int, images: Sequence[int]) -> int | None:
        return 0


@dataclass(frozen=True)
class KeyNorms(Signal):
    """L1 norm of each token's key in the layer that just ran, after RoPE, all key heads together: (tokens,) float32."""

    kind: ClassVar[str] = "key_norms"
    of_ran: ClassVar[bool] = True


@dataclass(frozen=True)
class Normed(Signal):
    """The residual stream entering the layer, through the norm in front of the model's head: (tokens, width)."""

    kind: ClassVar[str] = "normed"


@dataclass(frozen=True)
class Pivots(Signal):
    """The text behind the tokens' image with the largest key norms in the layer that just ran, as `Normed` has it.

    Shape: (count, width), the largest norm first. Where there is less text than `count`, it comes again from the first
    on; where there is none, rows are zero.
    """

    kind: ClassVar[str] = "pivots"
    of_ran: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    least: ClassVar[Mapping[str, int]] = {"count": 1}

    count: int = 4


@dataclass(frozen=True)
class Products(Signal):
    """How the next layer's queries of the text meet the tokens' keys, before RoPE: (tokens, heads) float32.

    The mean over the text behind the sample's last image of q · k / √(head size), without a softmax, behind the norms
    that queries and keys have. Keys are repeated where several heads share one. Zeros where there is no such text.

    Attributes:
        leave_out: So many rows of that text do not ask, at its beginning and at its end: the mark that ends an image,
            and the template behind the question. Where nobody else is left, all ask.

    Raises:
        SettingError: If these are no two whole numbers, 0 or more.
    """

    kind: ClassVar[str] = "products"
    reads_text: ClassVar[bool] = True

    leave_out: tuple[int, int] = (1, 5)

    def __post_init__(self) -> None:
        rows = self.leave_out
        if type(rows) is not tuple or len(rows) != 2 or any(type(count) is not int or count < 0 for count in rows):
            raise SettingError(f"Products: leave_out must be two whole numbers, 0 or more; got {rows!r}.")

    def queries(self, tokens: int, images: Sequence[int]) -> int | None:
        return 1  # text rows count as a single one


@dataclass(frozen=True)
class Text(Signal):
    """The text behind the tokens' image as it enters the layer, template included: (words, width), the model's dtype.

    Before layer 0 these are its embeddings. Behind tokens of several images it is the text behind the last of them.
    """

    kind: ClassVar[str] = "text"
    reads_text: ClassVar[bool] = True


@dataclass(frozen=True)
class ValueLikeness(Signal):
    """How values of the layer that just ran resemble the tokens' own: (tokens, 2) float32, of the text behind their
    image, and of that text and the image's seeds together. Zeros where there is no such text.

    A row's likeness is softmax(v · v_token / √(head size)), mean over key heads, each row seeing all that it is
    compared with; a column is its mean over rows. Seeds are the tokens with the most in the first column.

    Attributes:
        skip: So many rows of that text do not ask, at its beginning; where no more are there, all ask.
        seeds: How many seeds there are, as a share of the image's tokens: rounded, at least one.
        among: What the softmax is over: the "image", or "all" rows of the prompt.

    Raises:
        SettingError: If `skip` is below 0, or `seeds` is not in (0, 1].
    """

    kind: ClassVar[str] = "value_likeness"
    of_ran: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    least: ClassVar[Mapping[str, int]] = {"skip": 0}

    skip: int = 2
    seeds: float = 0.01
    among: Literal["image", "all"] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seeds, float) or not 0 < self.seeds <= 1:
            raise SettingError(f"ValueLikeness: seeds must be a share above 0 and at most 1; got {self.seeds!r}.")

    def seeded(self, tokens: int) -> int:
        """How many of so many tokens are seeds."""
        return max(1, round(self.seeds * tokens))


@dataclass(frozen=True)
class OwnSignal(Signal):
    """What a function of your own makes of the layer that just ran: (tokens,) or (tokens, any).

    Attributes:
        make: The function. It gets the tensors that `of` names, in that order, of the tokens of one image, in the
            model's dtype, and returns a row for each token. Its arithmetic counts among the stage's `flops`.
        of: "queries" and "keys" after RoPE, and "values": each (heads, tokens, head size), keys and values with the
            heads that they have; "hidden", what entered that layer: (tokens, width).

    Raises:
        SettingError: If `make` is no function, or `of` is no tuple of these names.
    """

    kind: ClassVar[str] = "own"
    of_ran: ClassVar[bool] = True

    make: Callable[..., Tensor]
    of: tuple[Literal["queries", "keys", "values", "hidden"], ...] = ("values",)

    def __post_init__(self) -> None:
        if not callable(self.make) or type(self.of) is not tuple or not self.of or not {*self.of} <= {*OF_LAYER}:
            raise SettingError(
                f"OwnSignal: make must be a function and of a tuple out of {', '.join(OF_LAYER)}; "
                f"got make={self.make!r}, of={self.of!r}."
            )

    def of_rows(self, tensors: Sequence[Tensor]) -> Tensor:
        """What the function makes of the tensors of an image's tokens.

        Raises:
            SettingError: If that has no row for each token.
        """
        made, tokens = self.make(*tensors), tensors[0].shape[-2]
        if not isinstance(made, Tensor) or made.dim() not in (1, 2) or len(made) != tokens:
            shape = getattr(made, "shape", made)
            raise SettingError(f"{self!r} got {tokens} tokens and must return a row for each; got {shape}.")
        return made


@dataclass(frozen=True, kw_only=True)
class TowerSignal(Signal):
    """Something of one block of the vision tower. A token made of several patches has the mean of theirs.

    Attributes:
        layer: The block, counted from the one whose output goes on to the projector (0); 1 is the one after it, if
            there is one.
        block: The block by its place in the tower, from 0 on, instead of `layer`. A model whose tower has fewer blocks,
            or whose block looks through windows, refuses the method.
        of: How many blocks the tower has that `block` is meant for. In another tower it is the block at the same share
            of the depth: the 9th of 24 is the 12th of 32. Where only some blocks look at the whole picture
            (Qwen2.5-VL), it is the nearest of these, of two the later.
        heads: "split": as the model attends. "joined": all heads' queries, and all their keys, side by side as one
            head, with 1 / √width for the scaling.
    """

    least: ClassVar[Mapping[str, int]] = {"block": 0, "of": 1}

    layer: Literal[0, 1] = 0
    block: int | None = None
    of: int | None = None
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
        by: Who pays it: the "cls" row, summed over heads; or all rows ("patches"), a CLS among them, the mean over
            heads and rows.
        layer, block, of, heads: See `TowerSignal`.
    """

    kind: ClassVar[str] = "attention"

    by: Literal["cls", "patches"] = "cls"


@dataclass(frozen=True)
class TowerKeys(TowerSignal):
    """Keys of the vision tower before RoPE: (tokens, head size) float32, the mean over heads; (tokens, width) if heads
    are "joined"."""

    kind: ClassVar[str] = "keys"


@dataclass(frozen=True)
class Cls(Signal):
    """The tower's CLS state beside the features: (1, width). Only useful for a row without a position."""

    kind: ClassVar[str] = "cls"


@dataclass(frozen=True)
class Deepstack(Signal):
    """What the tower of Qwen3-VL adds to an image's tokens behind the first decoder layers, the layers side by side:
    (tokens, layers · width). Only for stages in front of the decoder; other models have none.
    """

    kind: ClassVar[str] = "deepstack"


@dataclass(frozen=True)
class Columns(Signal):
    """Where tokens stand in their sample's prompt: (tokens + pivots,) int64. Earlier turns count, padding does not.

    Attributes:
        pivots: Behind the tokens stands as much text: that of `Pivots`, in its order; −1 where there is none.
    """

    kind: ClassVar[str] = "columns"
    of_ran: ClassVar[bool] = True

    pivots: int = 0

    @property
    def reads_text(self) -> bool:  # type: ignore[override]  # depends on the pivots
        return self.pivots > 0


@dataclass(frozen=True)
class Rotary(Signal):
    """What RoPE makes of where tokens stand in the prompt: (tokens, 2) float64, the mean cosine and the mean sine of
    the angles by which it turns pairs of numbers. float32 on Apple's GPUs. Only before decoder layers.

    The positions are those that tokens entered with, whatever was dropped since, counted from the sample's first token:
    padding does not count. Of M-RoPE it is the mean over all axes, each with all angles, in whatever way layers combine
    them. Multiples of 2⁻⁴⁰, so that places with the same mean tie. A layer without RoPE has that of the next with one.
    """

    kind: ClassVar[str] = "rotary"


@dataclass(frozen=True)
class Features(Signal):
    """The image's tokens before the projector: (tokens, width).

    The tower's features of a LLaVA-NeXT or LLaVA-OneVision picture are packed as its tokens are. Where a family shows
    none (Qwen-VLs, videos), the stage gets those behind it.
    """

    kind: ClassVar[str] = "features"


@dataclass(frozen=True)
class Cells(Signal):
    """Frame (or view), row and column of each token as it entered: (tokens, 3) int64, −1 where it has none.

    Where the stage's unit is an image and all its tokens are there, `view.arriving.grids` has the rows and columns of
    its frames. Only before decoder layers.
    """

    kind: ClassVar[str] = "cells"


@dataclass(frozen=True)
class Resource(Signal):
    """What something makes that was handed in by name, with `foveate.drop(…, resources={name: …})`.

    Attributes:
        name: Its name. A method finds the names that were handed in in `Shape.resources`.
        of: "features": its function `features` gets the image's tokens before the projector, (tokens, width), and makes
            (tokens, any) of them. "text": its function `text` gets the ids of the text that `Text` has, (words,) int64,
            and makes one tensor of them, whose shape is the same for every text.
    """

    kind: ClassVar[str] = "resource"

    name: str = ""
    of: Literal["features", "text"] = "features"

    @property
    def reads_text(self) -> bool:  # type: ignore[override]  # depends on what it is of
        return self.of == "text"


def refuse_other_options(values: Any) -> None:
    """Check the fields of a dataclass's instance that have a choice of values.

    Raises:
        SettingError: If a field has another value; the message names the choices.
    """
    kind: Any = type(values)
    for name, options in _choices(kind).items():
        value = getattr(values, name)
        if (type(value), value) not in options:
            choices = ", ".join([repr(option) for _, option in options])
            raise SettingError(f"{kind.__name__}: {name} must be one of {choices}; got {value!r}.")


@cache
def _choices(kind: type) -> dict[str, tuple[tuple[type, Any], ...]]:
    """The values that each field of a dataclass may have, where they are few, each behind its type: 1 is not True."""
    hints = get_type_hints(kind)
    choices: dict[str, tuple[tuple[type, Any], ...]] = {}
    for field in fields(kind):
        if get_origin(hints[field.name]) is Literal:
            choices[field.name] = tuple([(type(option), option) for option in get_args(hints[field.name])])
        elif hints[field.name] is bool:
            choices[field.name] = ((bool, True), (bool, False))
    return choices
