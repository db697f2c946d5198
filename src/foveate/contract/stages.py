"""Stages: where a method works, what it reads, how many tokens stay, and which.

A stage is pure: tensors in, one `Cut` out, so it runs on bare tensors without a model:

    stage = LayerStage(3, keep=0.5, reads=(Hidden(back=1),), score=moved)
    stage.cut(LayerView(hidden=now, hidden_before=earlier)).source

A stage sees one image or sample. It may only read what it declares, and must leave as many rows as it counts. It may
read a tensor's value in Python, but on a GPU the host then waits.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.contract.budget import half_up, keep_count
from foveate.contract.settings import Positions, Unit
from foveate.core.author import Author
from foveate.core.cut import Cut
from foveate.core.fields import check
from foveate.core.grid import Grid
from foveate.core.rank import top
from foveate.core.signals import Signal
from foveate.core.tensors import without_autocast
from foveate.core.thin import nearest_kept
from foveate.core.views import Arriving, PatchView, View
from foveate.errors import SettingError

WAYS = ("score", "pick", "choose", "look")
"""The functions of a stage; a stage has at most one of them."""
NO_FLOPS = "foveate 0.6 refuses it: a cost no longer has the FLOPs of scoring"
CountRule = Callable[[Arriving], int | None]
"""Return how many of the arriving tokens stay; None if the image or the question decides."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The properties of a model that a method knows before it sees an image.

    Attributes:
        depth: Decoder layers.
        cls: Whether the vision tower has a CLS token.
        renumbers: Whether positions may be renumbered (not with M-RoPE).
        resources: Names of the resources passed to `foveate.drop(…, resources={…})`.
    """

    depth: int
    cls: bool = False
    renumbers: bool = True
    resources: frozenset[str] = frozenset()

    @property
    def payer(self) -> Literal["cls", "patches"]:
        """Whose attention in the tower scores patches: the CLS token's, or that of all patches if there is none."""
        if self.cls:
            return "cls"
        return "patches"

    def numbers_anew(self, positions: Positions) -> bool:
        """Return whether rows are renumbered if a method asks for these positions."""
        return positions == "reindex" and self.renumbers


class Place(IntEnum):
    """The places where a stage may run, in the order in which a token meets them."""

    PIXELS = 0
    TOWER = 1
    BEFORE_PROJECTOR = 2
    BEHIND_PROJECTOR = 3
    LAYER = 4
    CACHE = 5
    DECODE = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """One step of a method at one place.

    A stage has one of four functions: `score` gives each token a number, and the highest stay; `pick` returns which
    tokens stay, or a cut that merges; `choose` returns a cut, and may also keep everything or decide the count itself;
    `look` drops nothing and returns notes.

    Attributes:
        reads: The signals it reads.
        keep: How many stay, as a share of those that arrive, truncated and at least one.
        count: How many stay, as a function of what arrives. Instead of `keep`.
        score: A number for each token, (tokens,); larger stays, ties go to the lower index.
        pick: Which tokens stay, from the view and their number: (count,) int64, ascending; or a whole cut, which may
            merge. Not called if all tokens stay.
        choose: A cut, from the view and the number given by `keep` or `count` (None: it decides itself). It returns
            None if all tokens stay unchanged.
        look: Notes: tensors by name, whose first dimension is the tokens.
        unit: What is ranked together: all tokens of a sample, those of each image or video, or of each frame.
        positions: "keep": a row keeps the position of its source. "reindex": rows are renumbered from here on; models
            with M-RoPE keep the positions.
        ownerless: Whether its cut may have rows that stand for no token (source −1), such as a tower's CLS.
        owner: Which member of a chain the stage belongs to. It only sees that member's notes. Set by chains.
        author: The method that it belongs to, if that is not foveate's own. Set by the method.
        flops: Deprecated and ignored: scoring is not part of a cost.
    """

    place: ClassVar[Place]

    reads: tuple[Signal, ...] = ()
    keep: float | None = None
    count: CountRule | None = None
    score: Callable[[Any], Tensor] | None = None
    pick: Callable[[Any, int], Tensor | Cut] | None = None
    choose: Callable[[Any, int | None], Cut | None] | None = None
    look: Callable[[Any], Mapping[str, Tensor]] | None = None
    unit: Unit = "sample"
    positions: Positions = "keep"
    ownerless: bool = False
    owner: tuple[int, ...] = ()
    author: Author | None = dataclasses.field(default=None, compare=False)
    flops: Callable[[Arriving, int], int] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.flops is not None:
            inner = type(self).__post_init__ is not Stage.__post_init__
            warnings.warn(f"Leave a stage's flops= out. {NO_FLOPS}.", DeprecationWarning, stacklevel=3 + inner)
            object.__setattr__(self, "flops", None)  # a copy of the stage warns no more
        check(self)
        kind = type(self).__name__
        if self.place < Place.LAYER and self.unit != "image":
            raise SettingError(f"{kind} works on one image or video at a time: leave unit out; got {self.unit!r}.")
        ways = [way for way in WAYS if getattr(self, way) is not None]
        if len(ways) > 1:
            raise SettingError(f"{kind} takes only one of score, pick, choose and look; got several.")
        if self.keep is not None and self.count is not None:
            raise SettingError(f"{kind} takes either keep or count; got keep={self.keep} and a count.")
        if ways in (["score"], ["pick"]) and self.keep is None and self.count is None and type(self).left is Stage.left:
            raise SettingError(f"{kind} has a {ways[0]} but neither keep nor count. Say how many tokens to keep.")

    @property
    def order(self) -> tuple[int, int]:
        """The sort key of stages: their place, then the block or layer."""
        return int(self.place), getattr(self, "layer", getattr(self, "block", 0))

    @property
    def reads_text(self) -> bool:
        """Whether its choice depends on the prompt's text."""
        return any(signal.reads_text for signal in self.reads)

    @property
    def drops(self) -> bool:
        """Whether tokens may be dropped here. A stage with `look` drops none."""
        return self.look is None

    def left(self, arriving: Arriving) -> int | None:
        """Return how many of the arriving tokens stay; None if the image or the question decides."""
        if self.look is not None:
            return arriving.tokens
        if self.keep is not None:
            return keep_count(arriving.tokens, self.keep)
        if self.count is None:
            return None
        try:
            count = self.count(arriving)
        except Exception as error:
            if self.author is None:
                raise
            raise self.author.fault(f"the count of {self}", error) from error
        if self.author is not None and count is not None and (type(count) is not int or count < 0):
            raise self.author.wrong(f"the count of {self}", "a whole number, 0 or more, or None", count)
        return None if count is None else min(count, arriving.tokens)

    @without_autocast
    def cut(self, view: View) -> Cut | None:
        """Run the stage on these tokens. Returns None if all stay unchanged.

        Raises:
            MethodError: If its functions fail, or return what cannot be used, in a method that is not foveate's own.
            SettingError: If the stage leaves another number of rows than it counted, or reads an undeclared signal.
        """
        try:
            count = self.left(view.arriving)
            if self.look is not None:
                notes = self.look(view)
                if self.author is not None and not _are_notes(notes, len(view)):
                    raise self.author.wrong(f"the look of {self}", f"tensors of {len(view)} rows by name", notes)
                return Cut.stay(len(view), notes)
            if self.choose is not None:
                cut = self.choose(view, count)
            elif count is None or count >= len(view):  # a stage with score or pick has keep or count
                return None
            elif self.score is not None:
                scores = self.score(view)
                if self.author is not None:
                    self._check_scores(scores, view, self.author)
                return Cut.take(top(scores, count), len(view))
            else:
                assert self.pick is not None
                picked = self.pick(view, count)
                cut = Cut.take(picked, len(view)) if isinstance(picked, Tensor) else picked
            self._check(cut, len(view), count)
            if self.author is not None and cut is not None and cut.rows is not None:
                self.author.check_finite(f"merging in {self}", cut.rows, view.known())
            return cut
        except Exception as error:
            if self.author is None:
                raise
            raise self.author.fault(str(self), error) from error

    def _check(self, cut: Cut | None, arriving: int, count: int | None) -> None:
        """Refuse a cut of a wrong number of arriving tokens, or with another number of rows than counted."""
        if self.author is not None and not isinstance(cut, Cut | None):
            raise self.author.wrong(str(self), f"a Cut, or ({count},) int64 indices from a pick", cut)
        if cut is not None and cut.arriving != arriving:
            raise SettingError(f"{self} got {arriving} tokens but returned a cut of {cut.arriving} tokens.")
        if cut is not None and cut.notes and self.place < Place.BEFORE_PROJECTOR:
            raise SettingError(f"{self} returned notes, which would be lost here. Return a cut without notes.")
        if count is None:
            return
        left = arriving if cut is None else cut.count
        if isinstance(left, Tensor):
            raise SettingError(
                f"{self} counts {count} tokens, but only the device knows how many its cut keeps. Return indices "
                "(Cut.take), or give the stage neither keep nor count."
            )
        if left != count:
            raise SettingError(f"{self} keeps {left} of {arriving} tokens, but its count is {count}.")

    def _check_scores(self, scores: Any, view: View, author: Author) -> None:
        """Refuse scores that are not one real number for each token, or that cannot be ranked."""
        tokens, what = len(view), f"the score of {self}"
        if not isinstance(scores, Tensor) or scores.shape != (tokens,) or scores.is_complex():
            wanted = f"a real number for each of the {tokens} tokens, a tensor of shape ({tokens},)"
            raise author.wrong(what, wanted, scores)
        author.check_finite(what, scores, view.known())

    def __str__(self) -> str:
        layer = f"({self.layer})" if hasattr(self, "layer") else ""
        return type(self).__name__ + layer


def _are_notes(notes: Any, tokens: int) -> bool:
    if not isinstance(notes, Mapping):
        return False
    return all(isinstance(note, Tensor) and note.shape[:1] == (tokens,) for note in notes.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelStage(Stage):
    """Before the vision tower: shrinks the image, so that the tower makes fewer tokens.

    Attributes:
        coarsen: The token grids that an image's frames or views shall have, given those that arrive.
    """

    place: ClassVar[Place] = Place.PIXELS

    unit: Unit = "image"
    coarsen: Callable[[Arriving], tuple[Grid, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchStage(Stage):
    """Before the vision tower, after any `PixelStage`: the tower runs only on the patches of the tokens that stay.

    It sees the pixels of one image or video, a `PixelView`, and reads no signals. Its cut only chooses tokens: it makes
    no new rows and leaves no notes. If a tower needs all patches, the dropped ones return after its last block, and the
    tokens made only of dropped patches are removed there.
    """

    place: ClassVar[Place] = Place.PIXELS

    unit: Unit = "image"

    @property
    def order(self) -> tuple[int, int]:
        return int(self.place), 1

    def _check(self, cut: Cut | None, arriving: int, count: int | None) -> None:
        super()._check(cut, arriving, count)
        if cut is not None and cut.rows is not None:
            raise SettingError(f"{self} may only choose which tokens stay, with Cut.keep or Cut.take: no rows.")


@dataclass(frozen=True, kw_only=True, eq=False)
class TowerStage(Stage):
    """Inside the vision tower, on patches: it sees a `PatchView`.

    If a family's tower cannot run on fewer patches, the stage works on the image's tokens after the projector.

    Attributes:
        block: The block of the tower before which the stage works, from 1 on. The engine runs one such stage, and
            refuses one behind a block from which features come.
    """

    place: ClassVar[Place] = Place.TOWER

    unit: Unit = "image"
    block: int = dataclasses.field(kw_only=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class ThinStage(TowerStage):
    """Inside the vision tower: some blocks run on fewer rows, and all rows are restored after the last block.

    It sees a `PatchView` of each segment (rows that attend to one another: an image, a tile, a frame) and reads no
    signals. Each dropped row is merged into the nearest one that stays, which counts in attention as all rows it stands
    for. No vision token is dropped.

    Attributes:
        at: The block before which rows are dropped, as a share of the blocks that feed the projector; in [0, 1].
    """

    block: int = dataclasses.field(default=0, kw_only=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choose is not None or self.look is not None or self.reads:
            raise SettingError("A ThinStage takes score or pick, with keep or count. Leave choose, look and reads out.")

    @property
    def drops(self) -> bool:
        return False

    def first(self, blocks: int) -> int:
        """Return the block before which rows are dropped, of `blocks` that are read. `blocks` means none are."""
        return half_up(self.at * blocks)

    def cut(self, view: View) -> Cut | None:
        cut = super().cut(view)
        assert isinstance(view, PatchView)
        if cut is not None and cut.rows is not None:
            raise SettingError(f"{self} may only choose which rows stay. Return a cut without new rows.")
        return None if cut is None else Cut.join(cut.source, nearest_kept(view.patches, cut.source))


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageStage(Stage):
    """Between the vision tower and the decoder, one image at a time: it sees an `ImageView`.

    Attributes:
        side: "before" or "behind" the projector. A family that pools or merges in its projector has vision tokens only
            behind it.
    """

    unit: Unit = "image"
    side: Literal["before", "behind"] = "before"

    @property
    def place(self) -> Place:  # type: ignore[override]  # depends on the side
        if self.side == "before":
            return Place.BEFORE_PROJECTOR
        return Place.BEHIND_PROJECTOR


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStage(Stage):
    """Before a decoder layer: it sees a `LayerView`.

    Attributes:
        layer: The decoder layer, 0-based, that is the first to see fewer tokens.
        bias: The name of a note of its cuts, (rows,) float: it is added to the logits of each row's key in this layer
            and all later ones, also while decoding. So the log of how many tokens a row stands for makes it weigh as
            many. Empty: nothing is added.
    """

    place: ClassVar[Place] = Place.LAYER

    layer: int = dataclasses.field(kw_only=False)
    bias: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        back = max((signal.layers_back for signal in self.reads), default=0)
        if self.layer < back:
            raise SettingError(
                f"A stage before layer {self.layer} cannot read {back} layers back. Move it to layer {back} or later."
            )

    def _check(self, cut: Cut | None, arriving: int, count: int | None) -> None:
        super()._check(cut, arriving, count)
        if self.bias and cut is not None and self.bias not in cut.notes:
            raise SettingError(
                f"{self} adds its note {self.bias!r} to the logits of keys, but its cut has no such note; it has "
                f"{sorted(cut.notes)}."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheStage(Stage):
    """After the prefill: the KV caches of earlier layers keep only the tokens that the last cut left.

    Attributes:
        first_layer: The first decoder layer whose cache is cut; None: the layer before the chain's first cut.
    """

    place: ClassVar[Place] = Place.CACHE

    first_layer: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeStage(Stage):
    """During decoding: chooses which vision tokens of a layer's cache are read. None is removed from the cache.

    It sees a `ReadView` and reads `CachedAttention`; the tokens that "stay" are read. Text, generated tokens and tokens
    that always stay are read too. The prefill, and so the first token of an answer, reads everything.

    Attributes:
        layer: The first decoder layer, 0-based, that may read less.
        when: "turn": once per turn, after the prefill, each layer by its own attention. "step": for each token, by the
            attention in the layer before `layer`, for all layers from `layer` on.
    """

    place: ClassVar[Place] = Place.DECODE

    layer: int = dataclasses.field(kw_only=False)
    when: Literal["turn", "step"] = "turn"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit != "sample" or self.look is not None:
            raise SettingError("A DecodeStage works on a whole sample and drops nothing. Leave unit and look out.")
        if self.layer < (self.when == "step"):
            raise SettingError("A DecodeStage with when='step' reads the layer before it. Give layer=1 or later.")
