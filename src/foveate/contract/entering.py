"""What methods share that reduce every image once, before the decoder: exact counts, coarser grids, frames of films."""

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.contract.budget import Budget, half_up
from foveate.contract.method import Budgeted
from foveate.contract.settings import Part, Positions
from foveate.contract.stages import ImageStage, Number, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.grid import Grid, coarser
from foveate.core.merge import by_source, of_length_one
from foveate.core.signals import Cls, Signal, TowerAttention, TowerKeys
from foveate.core.views import Arriving, ImageView
from foveate.errors import BudgetError, UnsupportedError


class Entering(Budgeted):
    """Every decoder layer processes the same rows of an image, so a budget is their number: no schedule is solved.

    Attributes:
        retention: The share of an image's vision tokens that enters the decoder, in (0, 1].
        tokens: The same as a number of tokens.
    """

    usual: ClassVar[float]
    """The share that enters where nothing is said; missing where other settings say how many rows an image has."""

    @property
    def wanted(self) -> Budget:
        """What was given, or the usual."""
        return self.budget or Budget(retention=self.usual)

    def rows(self, arriving: Arriving) -> int:
        """Rows of an image by the budget, at least one; a newline that the family adds by itself is one of them."""
        mean = self.wanted.mean(arriving.entered)
        return min(arriving.tokens, max(1, half_up(mean) - arriving.reserved))

    def check_floor(self, depth: int, entered: int) -> None:
        if self.budget is not None:
            self.parameter(lambda share: [share * entered], (0,), depth, entered, entered)


class EnteringShare(Entering):
    """One reduction before the decoder whose share is called `keep`, the name that papers have for the share.

    Attributes:
        keep: Share of an image's vision tokens that enter the decoder, in (0, 1].
        tokens: Instead of `keep`: how many tokens of an image enter.
        retention: Another name for `keep`: the name that budgets have.
    """

    schedule = ("keep",)

    keep: Part | None = None

    @property
    def keeps_all(self) -> bool:
        return 1 in (self.keep, self.retention)

    @property
    def wanted(self) -> Budget:
        if self.keep is not None:
            return Budget(retention=self.keep)
        return super().wanted


class Counted(EnteringShare):
    """A fixed number of an image's tokens enters the decoder, and every layer processes as many.

    So the number of tokens that enter, which the papers of these methods call the budget, is also the mean over layers.

    Attributes:
        keep: Share of an image's vision tokens that enter the decoder, in (0, 1], rounded to a number of tokens.
        tokens: Instead of `keep`: how many tokens of an image enter.
        retention: Another name for `keep`: the name that budgets have.
        positions: See `Positions`; the released codes number anew.
    """

    usual = 1 / 9  # 64 of LLaVA-1.5's 576 tokens

    positions: Positions = "reindex"

    def rows(self, arriving: Arriving) -> int:
        mean = self.wanted.mean(arriving.entered)
        return min(max(1, round(mean) - arriving.reserved), arriving.tokens)


class Gridded(EnteringShare):
    """Coarser token grids before the decoder.

    Attributes:
        keep: Share of an image's vision tokens that its grids may have afterwards, in (0, 1]. The new grid is the
            largest within this share that is near the picture's aspect ratio; every grid keeps one token.
        tokens: Instead of `keep`: the number of tokens that an image's grids may have.
        retention: Another name for `keep`: the name that budgets have.
    """

    usual = 1 / 3

    def coarsen(self, arriving: Arriving) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become."""
        mean = self.wanted.mean(arriving.entered)
        cells = sum(rows * columns for rows, columns in arriving.grids)
        # Tokens left for each that arrives: 192 of 576 are a third, so a 24 x 24 grid may have 192 cells.
        each = (mean - arriving.reserved) / cells
        return tuple(coarser((rows, columns), each * rows * columns) for rows, columns in arriving.grids)

    def left(self, arriving: Arriving) -> int | None:
        """Tokens left of an image, newlines not counted; None where its grids are not known."""
        if not arriving.grids:
            return None
        grids = self.coarsen(arriving)
        if grids == arriving.grids:
            return arriving.tokens
        return sum(rows * columns for rows, columns in grids)


def merging_stage(shape: Shape, positions: Positions, count: Number, cls: bool = True, **way: Any) -> ImageStage:
    """A stage on the way out of the vision tower that ranks by attention and merges by keys.

    The tower's CLS becomes a row (`cls`) where rows are numbered anew, as it has no position of its own. In a tower
    without one a token's score is the attention that it receives.
    """
    feeds_cls = cls and shape.numbers_anew(positions)
    reads: tuple[Signal, ...] = (TowerAttention(by=shape.payer), TowerKeys())
    if feeds_cls:
        reads = (*reads, Cls())
    return ImageStage(reads=reads, count=count, positions=positions, ownerless=feeds_cls, **way)


SHORTEST = 1e-12  # the smallest norm that divides


class Framed(Entering):
    """Keeps some tokens of each frame. Every picture and every video is treated by itself; a picture is one frame.

    A subclass has one setting of its own that says how many tokens stay (`schedule`; by default `usual`), and `select`.

    Attributes:
        retention: Instead of the method's own setting: the share of an image's or video's tokens to keep, in (0, 1],
            met exactly. A closing newline counts.
        tokens: The same as a number of tokens.
        positions: See `Positions`; a released code that shortens the features before the prompt is put together numbers
            anew.
    """

    reads: ClassVar[tuple[Signal, ...]] = ()
    """What `select` sees beside the features, in models that have it."""
    only_videos: ClassVar[bool] = False
    """Whether a picture keeps all its tokens, also with a budget: there is nothing to compare it with."""

    positions: Positions = "keep"

    @property
    def own(self) -> float:
        """The method's own setting, or what it usually is."""
        value = getattr(self, self.schedule[0])
        if value is None:
            return self.usual
        return float(value)

    def select(self, features: Tensor, count: int | None) -> Tensor | Cut:
        """Which tokens stay.

        Args:
            features: (frames, tokens of each, width) float32.
            count: How many stay in all; None: `select` decides, and returns a cut.

        Returns:
            (count,) int64, ascending, of all frames' tokens one behind the other.
        """
        raise NotImplementedError(f"{type(self).__name__} must define select(features, count).")

    @abstractmethod
    def own_count(self, frames: tuple[int, ...]) -> int | None:
        """How many tokens stay of frames of so many each, by the method's own setting; None: the features decide."""

    def floor(self, frames: tuple[int, ...]) -> int:
        """The fewest tokens that the method leaves."""
        return min(1, sum(frames))

    def stage(self, shape: Shape) -> Stage:
        return ImageStage(
            side="behind",
            reads=self.reads,
            count=self._count,
            choose=self._choose,
            positions=self.positions,
            flops=self.flops,
        )

    @abstractmethod
    def flops(self, arriving: Arriving, width: int) -> int:
        """FLOPs of its own arithmetic."""

    def _count(self, arriving: Arriving) -> int | None:
        if not arriving.tokens:
            return 0
        frames = arriving.frames
        if self.only_videos and frames is None:
            return None
        if self.only_videos and frames is not None and len(frames) == 1:
            return arriving.tokens
        if self.budget is None:
            if frames is None:
                return None
            return self.own_count(frames)
        count = self.rows(arriving)
        if frames is None or count >= self.floor(frames):
            return count
        least = self.floor(frames) + arriving.reserved
        raise BudgetError(
            f"{type(self).__name__} cannot keep {count + arriving.reserved} of {arriving.entered} vision tokens of "
            f"{len(frames)} frames: its floor is {least / arriving.entered:.2%}, {least} tokens. Give a larger budget.",
            floor=least / arriving.entered,
        )

    def _choose(self, view: ImageView, count: int | None) -> Cut | None:
        if count == len(view):
            return None
        chosen = self.select(self.frames_of(view), count)
        if isinstance(chosen, Cut):
            return chosen
        return Cut.take(chosen, len(view))

    def frames_of(self, view: ImageView) -> Tensor:
        """What is compared, (frames, tokens of each, width) float32.

        Raises:
            UnsupportedError: If it is not known where frames begin.
        """
        frames = view.arriving.frames
        if frames is None or len(set(frames)) > 1:
            raise UnsupportedError(
                f"{type(self).__name__} compares frames, and where the frames of these tokens begin is not known. "
                "Let no other stage of a chain drop tokens in front of it."
            )
        beside = [view[signal] for signal in self.reads if signal in view]
        return torch.cat((view.features, *beside), dim=-1).float().reshape(len(frames), frames[0], -1)


class ByScene(Framed):
    """Merges scene by scene (`merge`), which reads values on the host, by features and attention in the tower.

    Attributes:
        keep: r, the share of a film's tokens to keep, in (0, 1]; usually a quarter.
        retention, tokens, positions: See `Framed`.
    """

    schedule = ("keep",)
    usual = 0.25

    keep: Part | None = None

    @property
    def keeps_all(self) -> bool:
        return 1 in (self.keep, self.retention)

    @abstractmethod
    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        """What tokens become, scene by scene: rows of any order.

        Args:
            features: (frames, tokens of each, width) float32.
            attention: (frames, tokens of each) float32, in the vision tower.
            count: How many rows are left in all; None: `merge` decides.
        """

    def stage(self, shape: Shape) -> Stage:
        ascending = not shape.numbers_anew(self.positions)
        # Attention is there on the way out of the tower; where the projector pools or merges, so are the tokens behind.
        return ImageStage(
            reads=(*self.reads, TowerAttention(by=shape.payer)),
            count=self._count,
            choose=partial(self._merge, ascending),
            positions=self.positions,
            host=True,
            flops=self.flops,
        )

    def _merge(self, ascending: bool, view: ImageView, count: int | None) -> Cut | None:
        if count == len(view):
            return None
        features = self.frames_of(view)
        cut = self.merge(features, view.attention.reshape(features.shape[:2]), count)
        cut = by_source(cut) if ascending else cut
        assert cut.rows is not None
        return cut.with_rows(cut.rows.to(view.features.dtype))


def change(now: Tensor, before: Tensor) -> Tensor:
    """1 − cosine of each row with its counterpart: (…, width) float32 twice -> (…).

    By ‖a − b‖² / 2 of the rows at length one: so rows that are equal are at exactly 0 and tie, where the cosine itself
    would be 1 give or take its rounding. A row of zeros is at 1 from every row, as its cosine is 0.
    """
    a, b = of_length_one(now, SHORTEST), of_length_one(before, SHORTEST)
    without_length = (a == 0).all(dim=-1).float() + (b == 0).all(dim=-1).float()
    return 0.5 * ((a - b).square().sum(dim=-1) + without_length)


def changes(features: Tensor) -> Tensor:
    """`change` of each token from the one at its place in the frame before: (frames, tokens of each); 3 in the first.

    That is above any other, as cosines lie in [−1, 1], so that the first frame stays before all.
    """
    first = torch.full_like(features[:1, :, 0], 3.0)
    return torch.cat((first, change(features[1:], features[:-1])))
