"""What a method sees and what it answers.

A method ranks; `foveate.core.budget` decides how many stay; the engine moves tensors. A method sees one
sample at a time, so nothing in a method file knows of batches, padding, masks or caches.
"""

import dataclasses
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from foveate.core.asking import Asking
from foveate.core.budget import keep_count
from foveate.core.grid import Grid
from foveate.core.merge import Merge
from foveate.core.tower import TowerView
from foveate.errors import SettingError, UnsupportedError

__all__ = ["Cut", "Method", "Preset", "TowerView", "View"]


Queries = Literal["vision", "after", "last"]


@dataclass(slots=True)
class View:
    """One sample's vision tokens as they stand before a decoder layer.

    Attributes:
        layer: The decoder layer (0-based) these tokens are about to enter.
        tokens: Which tokens are left, in row order: (tokens,) int64, ordinals among the sample's vision tokens as
            they entered the model; −1 for a row that is no token of its own (a tower's CLS).
        read: Returns the residual stream entering the layer at these tokens, (tokens, width), model dtype.
        entered: How many vision tokens the sample had when it entered the model.
        sizes: How many of `tokens` belong to each image or video of the sample, in order (to each frame, for a method
            that goes `by_frame`); None once a cut ranked over all of them together, since only the device knows then.
        entered_sizes: How many vision tokens each of these images had when it entered the model.
        started_sizes: How many rows of each of them entered the decoder: fewer where the tower left fewer.
        notes: What a method wants to remember from layer to layer, a tensor a name whose first dimension
            is `tokens`. The engine cuts them with the tokens.
        attend: Where attention rows come from (see `attention`); None where nobody can compute them.
        keys_of: Returns the layer's keys at these tokens (see `keys`).
        reindex: Whether positions may be numbered anew here; families with M-RoPE keep theirs.
        text_after: Whether text comes after each of the images; empty if nobody knows.
    """

    layer: int
    tokens: Tensor
    read: Callable[[], Tensor]
    entered: int
    sizes: tuple[int, ...] | None = None
    entered_sizes: tuple[int, ...] = ()
    started_sizes: tuple[int, ...] = ()
    notes: dict[str, Tensor] = field(default_factory=dict)
    attend: Callable[[Queries, int, int, bool], Iterator[Tensor]] | None = None
    keys_of: Callable[[], Tensor] | None = None
    reindex: bool = True
    text_after: tuple[bool, ...] = ()
    start: int = 0
    _hidden: Tensor | None = None

    @classmethod
    def of(cls, hidden: Tensor, layer: int = 1, **known: Any) -> Self:
        """A view of the given rows, (tokens, width): for tests and for trying a method by hand."""
        count = hidden.shape[0]
        known.setdefault("tokens", torch.arange(count, device=hidden.device))
        known.setdefault("entered", count)
        known.setdefault("sizes", (count,))
        known.setdefault("entered_sizes", known["sizes"])
        known.setdefault("started_sizes", known["sizes"])
        return cls(layer=layer, read=lambda: hidden, **known)

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the layer at these tokens: (tokens, width), model dtype."""
        if self._hidden is None:
            self._hidden = self.read()
        return self._hidden

    @property
    def keys(self) -> Tensor:
        """The layer's keys after RoPE at these tokens, mean over heads: (tokens, head size) float32."""
        if self.keys_of is None:
            raise UnsupportedError("Keys are only there inside a model.")
        return self.keys_of()[self.start : self.start + len(self)]

    def attention(self, queries: Queries, bidirectional: bool = False) -> Iterator[Tensor]:
        """Attention the layer pays to these tokens, computed for the queries that score and no others.

        Args:
            queries: Whose rows: these vision tokens' ("vision"), those of all text after them ("after"), or the
                prompt's last token's ("last").
            bidirectional: Let vision rows see all of these tokens, not only those before them.

        Yields:
            (some rows, tokens) float32, blocks of rows in order: probabilities after a softmax over all a row sees,
            mean over heads, not renormalised over these tokens.

        Raises:
            UnsupportedError: If the layer's queries and keys cannot be had.
        """
        if self.attend is None:
            raise UnsupportedError("Attention rows are only there inside a model.")
        yield from self.attend(queries, self.start, self.start + len(self), bidirectional)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def part(self, start: int, stop: int) -> "View":
        """The view of tokens `start` to `stop` alone."""
        return dataclasses.replace(
            self,
            tokens=self.tokens[start:stop],
            read=lambda: self.hidden[start:stop],
            sizes=(stop - start,),
            notes={name: note[start:stop] for name, note in self.notes.items()},
            start=self.start + start,
            _hidden=None,
        )

    def images(self) -> "list[View]":
        """A view of each image by itself; of all tokens together where only the device knows whose is whose."""
        if self.sizes is None or len(self.sizes) == 1:
            return [self]
        after = self.text_after or (True,) * len(self.sizes)
        told = zip(self.sizes, self.entered_sizes, self.started_sizes, after, strict=True)
        views, start = [], 0
        for size, entered, started, text in told:
            part = self.part(start, start + size)
            views.append(
                dataclasses.replace(part, entered_sizes=(entered,), started_sizes=(started,), text_after=(text,))
            )
            start += size
        return views


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A method's answer at a cut: which tokens stay, or, where it merges, the new rows.

    Attributes:
        kept: Which of the view's tokens the rows stand for, in row order: (rows,) int64. Ascending where no `rows` are
            given; −1 for a row that is no token of its own. Or which of them stay, (tokens,) bool, where how many they
            are depends on what there is to see: the engine then asks the device, once for the whole batch.
        sizes: How many of them belong to each image or video, if the method knows. Needed with `rows`.
        rows: The new rows, (rows, width), where the method merges or reorders; None: the tokens stay as they are.
        assign: (tokens,) int64, the row each of the view's tokens went into, −1 if it was dropped; None without
            `rows`.
        notes: What the method wants to remember of the rows, a tensor a name whose first dimension is the rows.
    """

    kept: Tensor
    sizes: tuple[int, ...] | None = None
    rows: Tensor | None = None
    assign: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def join(cls, cuts: "Sequence[Cut]", sizes: Sequence[int]) -> "Cut":
        """One answer from one for each image, whose views had `sizes` tokens."""
        starts = [0, *itertools.accumulate(sizes)]
        counts = tuple(cut.kept.shape[0] for cut in cuts)
        firsts = [0, *itertools.accumulate(counts)]
        kept = [torch.where(cut.kept < 0, cut.kept, cut.kept + at) for cut, at in zip(cuts, starts, strict=False)]
        if any(cut.rows is None for cut in cuts):
            return cls(torch.cat(kept), sizes=counts)
        assign = [
            torch.where(cut.assign < 0, cut.assign, cut.assign + at)
            for cut, at in zip(cuts, firsts, strict=False)
            if cut.assign is not None
        ]
        rows = torch.cat([cut.rows for cut in cuts if cut.rows is not None])
        return cls(torch.cat(kept), counts, rows, torch.cat(assign))


@dataclass(frozen=True, slots=True)
class Preset:
    """A setting with a name and a source.

    Attributes:
        name: `method/model/budget`.
        method: The setting itself.
        depth: Decoder layers of the model it was made for.
        vision_tokens: Vision tokens of the model's usual input; None where any count goes.
        source: Where the numbers come from.
    """

    name: str
    method: "Method"
    depth: int
    vision_tokens: int | None
    source: str


class Method(ABC):
    """A way to drop vision tokens: a frozen dataclass of settings and what it does at a cut.

    Subclasses in `foveate/methods/` are found by themselves; others call `foveate.register_method` or
    declare an entry point in the group `foveate.methods`.
    """

    __slots__ = ()

    name: ClassVar[str]
    """The name users type."""
    presets: ClassVar[tuple[Preset, ...]] = ()
    """Published and derived settings."""

    @abstractmethod
    def cuts(self) -> tuple[int, ...]:
        """Decoder layers (0-based) before which tokens leave, ascending."""

    @abstractmethod
    def cut(self, view: View) -> Cut | None:
        """Which tokens of `view` stay before layer `view.layer`; None if all do."""

    @abstractmethod
    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
        """Vision tokens each of `depth` decoder layers processes, for a sample with images of these sizes.

        None where that depends on what the images show.
        """

    @classmethod
    @abstractmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        **settings: Any,
    ) -> Self:
        """The setting that spends a budget on `model` (see the subclasses)."""

    @property
    def together(self) -> bool:
        """Whether `cut` and `observe` can look at many samples at once, which is faster: under `torch.func.vmap`, so no
        value of a tensor may decide what Python does, and what is written into must come from the view's tensors."""
        return False

    @property
    def reindexes(self) -> bool:
        """Whether rows are numbered anew after a cut, each layer for itself; else they keep their position ids."""
        return False

    @property
    def reads_text(self) -> bool:
        """Whether text decides: then the prompt's end must be the call's end (assisted decoding is refused)."""
        return False

    @property
    def reduces_tower(self) -> bool:
        """Whether `reduce` wants to see each image's tokens on their way out of the tower."""
        return False

    @property
    def stage(self) -> Literal["pixels", "tower", "projector"]:
        """Where a method that `reduces_tower` does it: smaller images go into the tower ("pixels", see `coarsen`), or
        `reduce` sees the tokens between tower and projector, where the family can ("tower"), or behind both."""
        return "tower"

    @property
    def merges_early(self) -> bool:
        """Whether `merge_early` wants to see each image's patches behind the tower's first layer."""
        return False

    @property
    def adds_rows(self) -> bool:
        """Whether rows may come that are no tokens of their own (−1 in `Cut.kept`), as a tower's CLS."""
        return True

    def merge_early(self, rows: Tensor, grid: tuple[int, int]) -> Asking[Merge | None]:
        """Which patches become one after the tower's first layer: (patches, width) of one image in raster order.

        A method that must know a number of the device's yields it, so that those of all images are read together.
        """
        return None

    def reduce(self, view: TowerView) -> Asking[Cut | None]:
        """What becomes of one image's tokens on their way out of the tower; None: nothing. It may yield as
        `merge_early` does."""
        return None

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become, where images are made smaller.

        Args:
            grids: Rows and columns of each, in tokens.
            entered: Vision tokens the image has in the prompt.
            reserved: How many of the rows that stay are no grid's (see `TowerView`).
        """
        return tuple(grids)

    def plan_grids(self, depth: int, sizes: Sequence[int], grids: Sequence[Sequence[Grid]]) -> tuple[int, ...] | None:
        """`plan` where the token grids of each image are known too: those of its frames or views, newlines apart."""
        return self.plan(depth, sizes)

    def kv_layers(self, depth: int) -> Sequence[int]:
        """Decoder layers whose KV cache is cut, after prefill, to the tokens left at the end."""
        return ()

    @property
    def by_frame(self) -> bool:
        """Whether the frames of a video count as images of their own, in `View.sizes` and in `plan`."""
        return False

    def watches(self, layer: int) -> bool:
        """Whether `observe` wants to see the tokens entering `layer`."""
        return False

    @property
    def observes_attention(self) -> bool:
        """Whether `observe` asks for attention rows: then it is called while the layer attends, and reads the layer's
        own queries and keys, so that nothing is computed twice. (A cut comes before its layer, and has none to read.)
        """
        return False

    def observe(self, view: View) -> None:  # noqa: B027 - most methods take no notes
        """Look at the tokens entering a watched layer, after the cut there, and take notes."""

    def scoring_flops(self, depth: int, width: int, sizes: Sequence[int]) -> int:
        """FLOPs of the method's own arithmetic in a decoder of `depth` layers and residual width `width`, for a
        sample with images of these sizes; sorting and gathering do not count."""
        return 0

    def remembered(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Rows of the residual stream that notes hold while each decoder layer runs, where these process so many vision
        tokens."""
        return (0,) * len(tokens)

    def check(self, depth: int) -> None:
        """Refuse a decoder of `depth` layers that the setting does not fit.

        Raises:
            SettingError: If a cut lies outside the decoder.
        """
        late = [layer for layer in self.cuts() if layer >= depth]
        if late:
            raise SettingError(
                f"{type(self).__name__} cuts before layers {late}, but the decoder has layers 0 to {depth - 1}. "
                f"Use {type(self).__name__}.for_budget(model, …), which fits any depth."
            )

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain values: `{"method": name, …}`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"method": self.name, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The setting that `to_dict` gave.

        Raises:
            SettingError: If a field is unknown or the dictionary belongs to another method.
        """
        values = dict(values)
        if (name := values.pop("method", cls.name)) != cls.name:
            raise SettingError(f"These settings belong to {name!r}, not to {cls.name!r}.")
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise SettingError(f"{cls.name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        return cls(**values)

    def to_json(self) -> str:
        """The setting as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The setting that `to_json` gave."""
        return cls.from_dict(json.loads(text))


def decoder_depth(model: Any) -> int:
    """Decoder layers of a model or of its config."""
    config = getattr(model, "config", model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.num_hidden_layers)


FIXED_COUNT = frozenset({"llava", "vipllava", "paligemma"})  # one token count for every image


def vision_token_count(model: Any, given: int | None) -> int:
    """Vision tokens of the model's usual input: `given`, or the family's fixed count.

    Raises:
        SettingError: If the count depends on the image and none was given.
    """
    if given is not None:
        return given
    config = getattr(model, "config", model)
    count = _picture_tokens(config) if getattr(config, "model_type", None) in FIXED_COUNT else None
    if count is not None:
        return count
    raise SettingError(
        f"A {getattr(config, 'model_type', 'model')!r} model's token count depends on the image: "
        "give vision_tokens=…, or a share with retention=… instead of tokens=…."
    )


def _picture_tokens(config: Any) -> int | None:
    """Vision tokens of any picture by the tower's grid, as image_seq_length may be a default that says nothing; None
    where pictures have any shape (Pixtral)."""
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return int(config.image_seq_length)
    if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return None
    cls = int(vision.model_type == "clip_vision_model")
    strategy = getattr(config, "vision_feature_select_strategy", None)
    left_out = cls if strategy is None else int(strategy == "default")
    return int((vision.image_size // vision.patch_size) ** 2) + cls - left_out


def share(
    model: Any, tokens: float | None, retention: float | None, vision_tokens: int | None
) -> tuple[float, int | None]:
    """The budget as (mean retention in (0, 1], vision tokens if known).

    Raises:
        SettingError: If not exactly one of `tokens` and `retention` is given, or it leaves its range.
    """
    if (tokens is None) == (retention is None):
        raise SettingError(f"Give one of tokens= and retention=; got tokens={tokens}, retention={retention}.")
    if retention is None:
        assert tokens is not None
        vision_tokens = vision_token_count(model, vision_tokens)
        retention = tokens / vision_tokens
    if not 0 < retention <= 1:
        got = f"tokens={tokens} of {vision_tokens}" if tokens is not None else f"retention={retention}"
        raise SettingError(f"A budget lies above 0 and at most at the full count; got {got}.")
    return retention, vision_tokens


def as_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Layers as a tuple of ints, strictly ascending.

    Raises:
        SettingError: If they are not.
    """
    values = tuple(int(layer) for layer in layers)
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise SettingError(f"Layers must ascend strictly; got {values}.")
    return values


def keep_each(sizes: Sequence[int], ratio: float, minimum: int) -> tuple[int, ...]:
    """`keep_count` of every image."""
    return tuple(keep_count(size, ratio, minimum) for size in sizes)
