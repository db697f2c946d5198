"""`Frames`: what methods share that compare the frames of films, and reduce them once, before the decoder."""

import dataclasses
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor

from foveate.contract.method import LastFrame
from foveate.contract.once import Once
from foveate.contract.settings import Positions
from foveate.contract.stages import ImageStage, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.merge import by_source, of_length_one
from foveate.core.signals import TowerAttention
from foveate.core.views import Arriving, ImageView
from foveate.errors import BudgetError, UnsupportedError


class Frames(Once):
    """Keeps some tokens of each frame. Every picture and every video is treated by itself; a picture is one frame.

    A subclass writes `select` or `merge`, and has one setting of its own that says how many tokens stay (the first of
    `schedule`; by default `usual`).

    Attributes:
        keep: The share of a film's tokens to keep, in (0, 1]; usually a quarter.
        retention: Instead of the method's own setting: the share of an image's or video's tokens to keep, in (0, 1],
            met exactly. A closing newline counts.
        tokens: The same as a number of tokens.
        positions: See `Positions`; a released code that shortens the features before the prompt is put together numbers
            anew.
    """

    usual = 0.25
    halves_up = True
    only_videos: ClassVar[bool] = False
    """Whether a picture keeps all its tokens, also with a budget: there is nothing to compare it with. A film keeps
    its first frame then."""

    positions: Positions = "keep"

    _last: ClassVar[LastFrame | None] = None

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
        raise NotImplementedError(f"{type(self).__name__} must define select(features, count) or merge(…).")

    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        """What tokens become, scene by scene: rows of any order. It may read values on the host.

        Args:
            features: (frames, tokens of each, width) float32.
            attention: (frames, tokens of each) float32, in the vision tower.
            count: How many rows are left in all; None: `merge` decides.
        """
        raise NotImplementedError

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        """How many tokens stay of frames of so many each, by the method's own setting; None: the features decide."""
        return None

    def floor(self, frames: tuple[int, ...]) -> int:
        """The fewest tokens that the method leaves: the first frame where that stays whole."""
        if self.only_videos and self.before(frames[0]) is None:
            return frames[0]
        return min(1, sum(frames))

    def goes_on(self, last: LastFrame) -> Self:
        """As in the base class: of what compares each frame with the one before it."""
        if not self.only_videos:
            return self
        copy = dataclasses.replace(self)
        object.__setattr__(copy, "_last", last)
        return copy

    def before(self, tokens: int) -> Tensor | None:
        """The last frame that was seen, (tokens, width) float32, if it had as many tokens as these have."""
        if self._last is None or self._last.features is None or len(self._last.features) != tokens:
            return None
        return self._last.features

    def changes(self, features: Tensor) -> Tensor:
        """`changes`, of the first frame from the last one that was seen."""
        return changes(features, self.before(features.shape[1]))

    # -- what follows from these -------------------------------------------------------------------------------

    @property
    def _merges(self) -> bool:
        return type(self).merge is not Frames.merge

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        # Attention is there on the way out of the tower; where the projector pools or merges, so are the tokens behind.
        paid = (TowerAttention(by=shape.payer),) if self._merges else ()
        stage = ImageStage(
            side="before" if self._merges else "behind",
            reads=(*self.reads, *paid),
            count=self._count,
            choose=partial(self._choose, not shape.numbers_anew(self.positions)),
            positions=self.positions,
            host=self._merges or self._last is not None,
            flops=self.flops,
        )
        return (stage,)

    def _count(self, arriving: Arriving) -> int | None:
        if not arriving.tokens:
            return 0
        frames = arriving.frames
        if self.only_videos and frames is None:
            return None
        if self.only_videos and frames is not None and len(frames) == 1 and self.before(frames[0]) is None:
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

    def _choose(self, ascending: bool, view: ImageView, count: int | None) -> Cut | None:
        if count == len(view) and self._last is None:
            return None
        features = self.frames_of(view)
        if not self._merges:
            chosen = self.select(features, count)
            if self._last is not None:
                self._last.features = features[-1]
            return chosen if isinstance(chosen, Cut) else Cut.take(chosen, len(view))
        cut = self.merge(features, view.attention.reshape(features.shape[:2]), count)
        cut = by_source(cut) if ascending else cut
        assert cut.rows is not None
        return cut.with_rows(cut.rows.to(view.features.dtype))

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


def change(now: Tensor, before: Tensor) -> Tensor:
    """1 − cosine of each row with its counterpart: (…, width) float32 twice -> (…).

    By ‖a − b‖² / 2 of the rows at length one: so rows that are equal are at exactly 0 and tie, where the cosine itself
    would be 1 give or take its rounding. A row of zeros is at 1 from every row, as its cosine is 0.
    """
    a, b = of_length_one(now), of_length_one(before)
    without_length = (a == 0).all(dim=-1).float() + (b == 0).all(dim=-1).float()
    return 0.5 * ((a - b).square().sum(dim=-1) + without_length)


def change_flops(arriving: Arriving, width: int) -> int:
    """FLOPs of `change`: for each number 3 for its length and 3 for its difference, squared and added."""
    return 6 * width * arriving.tokens


def changes(features: Tensor, before: Tensor | None = None) -> Tensor:
    """`change` of each token from the one at its place in the frame before: (frames, tokens of each); 3 in the first.

    That is above any other, as cosines lie in [−1, 1], so that the first frame stays before all.

    Args:
        features: (frames, tokens of each, width) float32.
        before: The frame before the first, (tokens of each, width) float32; None: there is none.
    """
    first = torch.full_like(features[:1, :, 0], 3.0)
    if before is not None:
        first = change(features[:1], before[None])
    return torch.cat((first, change(features[1:], features[:-1])))
