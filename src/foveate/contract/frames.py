"""`Frames`: base class of methods that compare the frames of a video and reduce them once, before the decoder."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from foveate.contract.budget import half_up
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
    """Keeps some tokens of each frame. Each image and each video is reduced separately; an image is one frame.

    A subclass writes `select` or `merge`, and has one setting of its own that gives the number of tokens that stay: the
    first name in `schedule`, with the default `usual`.

    Attributes:
        keep: The share of a video's tokens to keep, in (0, 1]; usually a quarter.
        retention: Instead of the method's own setting: the share of an image's or video's tokens to keep, in (0, 1],
            met exactly. A closing newline counts.
        tokens: Instead of the method's own setting: that budget as a number of tokens.
        positions: See `Positions`. Released code that shortens the features before it builds the prompt corresponds to
            "reindex".
    """

    usual = 0.25
    halves_up = True
    only_videos: ClassVar[bool] = False
    """Whether an image keeps all its tokens even with a budget, because it has no frame to compare with. A video then
    keeps its first frame."""

    positions: Positions = "keep"

    _last: ClassVar[LastFrame | None] = None

    @property
    def own(self) -> float:
        """The method's own setting, or `usual` if it is not set."""
        value = getattr(self, self.schedule[0], None)
        if value is None:
            return self.usual
        return float(value)

    def select(self, features: Tensor, count: int | None) -> Tensor | Cut:
        """Choose which tokens stay.

        Args:
            features: (frames, tokens per frame, width) float32.
            count: How many stay over all frames. None: `select` decides, and returns a cut.

        Returns:
            (count,) int64, ascending, into the tokens of all frames, frame after frame; or a cut.
        """
        raise NotImplementedError(f"{type(self).__name__} must define select(features, count) or merge(…).")

    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        """Merge the tokens scene by scene. The rows may come in any order, and values may be read on the host.

        Args:
            features: (frames, tokens per frame, width) float32.
            attention: (frames, tokens per frame) float32, from the vision tower.
            count: How many rows are left over all frames. None: `merge` decides.
        """
        raise NotImplementedError

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        """Return how many tokens the method's own setting keeps of frames of these sizes; None: features decide.

        By default the share `keep`, or None if the setting has another name.
        """
        if self.schedule[0] != "keep":
            return None
        return max(self.floor(frames), half_up(self.own * sum(frames)))

    def floor(self, frames: tuple[int, ...]) -> int:
        """Return the fewest tokens that the method can leave: the first frame if it always stays whole."""
        if self.only_videos and self.before(frames[0]) is None:
            return frames[0]
        return min(1, sum(frames))

    def goes_on(self, last: LastFrame) -> Self:
        """See the base class. Only methods that compare each frame with the one before it need `last`."""
        if not self.only_videos:
            return self
        copy = dataclasses.replace(self)
        object.__setattr__(copy, "_last", last)
        return copy

    def before(self, tokens: int) -> Tensor | None:
        """Return the last frame seen, (tokens, width) float32, if it has `tokens` tokens; else None."""
        if self._last is None or self._last.features is None or len(self._last.features) != tokens:
            return None
        return self._last.features

    def changes(self, features: Tensor) -> Tensor:
        """Return `changes` of these frames, comparing the first with the last frame seen."""
        return changes(features, self.before(features.shape[1]))

    # -- derived from the above --------------------------------------------------------------------------------

    @property
    def _merges(self) -> bool:
        return type(self).merge is not Frames.merge

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        # The tower's attention is available before the projector, and also behind it if the projector pools or merges.
        paid = (TowerAttention(by=shape.payer),) if self._merges else ()
        way = self.merge if self._merges else self.select
        stage = ImageStage(
            side="before" if self._merges else "behind",
            reads=(*self.reads, *paid),
            count=self._count,
            choose=partial(self._choose, way, not shape.numbers_anew(self.positions)),
            positions=self.positions,
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

    def _choose(self, way: Callable[..., Any], ascending: bool, view: ImageView, count: int | None) -> Cut | None:
        if count == len(view) and self._last is None:
            return None
        features = self.frames_of(view)
        if not self._merges:
            chosen = way(features, count)
            if self._last is not None:
                self._last.features = features[-1]
            return Cut.take(chosen, len(view)) if isinstance(chosen, Tensor) else chosen
        cut = way(features, view.attention.reshape(features.shape[:2]), count)
        cut = by_source(cut) if ascending else cut
        assert cut.rows is not None
        return cut.with_rows(cut.rows.to(view.features.dtype))

    def frames_of(self, view: ImageView) -> Tensor:
        """Return the features to compare, (frames, tokens per frame, width) float32.

        Raises:
            UnsupportedError: If the tokens of each frame are not known, or frames differ in size.
        """
        frames = view.arriving.frames
        if frames is None or len(set(frames)) > 1:
            raise UnsupportedError(
                f"{type(self).__name__} compares frames, but where the frames of these tokens begin is unknown. "
                "Let no other stage of a chain drop tokens in front of it."
            )
        beside = [view[signal] for signal in self.reads if signal in view]
        return torch.cat((view.features, *beside), dim=-1).float().reshape(len(frames), frames[0], -1)


def change(now: Tensor, before: Tensor) -> Tensor:
    """Return 1 − cosine of each row with its counterpart: two (…, width) float32 tensors -> (…).

    Computed as ‖a − b‖² / 2 of the normalised rows, so that equal rows give exactly 0 and tie; the cosine itself would
    be 1 up to rounding. A row of zeros has a cosine of 0, so its change is 1 from any other row.
    """
    a, b = of_length_one(now), of_length_one(before)
    without_length = (a == 0).all(dim=-1).float() + (b == 0).all(dim=-1).float()
    return 0.5 * ((a - b).square().sum(dim=-1) + without_length)


def changes(features: Tensor, before: Tensor | None = None) -> Tensor:
    """Return `change` of each token from the same place in the previous frame, (frames, tokens per frame) float32.

    The first frame gets 3, more than any change (cosines lie in [−1, 1]), so it is kept before all others.

    Args:
        features: (frames, tokens per frame, width) float32.
        before: The frame before the first, (tokens per frame, width) float32. If given, the first frame is compared
            with it instead of getting 3.
    """
    first = torch.full_like(features[:1, :, 0], 3.0)
    if before is not None:
        first = change(features[:1], before[None])
    return torch.cat((first, change(features[1:], features[:-1])))
