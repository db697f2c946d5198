"""What VidCom2, DyCoke and EVS share: one stage behind the projector that looks at features, frame by frame."""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.merge import of_length_one
from foveate.errors import BudgetError, SettingError, UnsupportedError
from foveate.methods.entering import Entering
from foveate.methods.schedule import Budget, half_up
from foveate.methods.settings import Positions, numbering
from foveate.methods.stages import Arriving, ImageStage, ImageView, Shape, Signal, Stage

__all__ = ["Framed", "change"]

SHORTEST = 1e-12  # the smallest norm that divides


class Framed(Entering):
    """Keeps some tokens of each frame. Every picture and every video is treated by itself; a picture is one frame.

    A subclass has one setting of its own that says how many tokens stay (`schedule`), and `select`.

    Attributes:
        retention: Instead of the method's own setting: the share of an image's or video's tokens to keep, in (0, 1],
            met exactly. A closing newline counts.
        tokens: The same as a number of tokens.
        positions: "keep": kept tokens keep their position ids. "reindex": they are numbered anew, as where a released
            code shortens the features before the prompt is put together. Families with M-RoPE always keep.
    """

    schedule: ClassVar[tuple[str, ...]]
    usual: ClassVar[float]
    """What the method's own setting is if nothing is said."""
    reads: ClassVar[tuple[Signal, ...]] = ()
    """What `select` sees beside the features, in models that have it."""
    only_videos: ClassVar[bool] = False
    """Whether a picture keeps all its tokens, also with a budget: there is nothing to compare it with."""

    positions: Positions = "keep"

    def check_settings(self) -> None:
        (own,) = self.schedule
        value = getattr(self, own)
        super().check_settings()
        if not self.has_budget:
            self._set(**{own: self.usual if value is None else value})
        elif value is not None:
            raise SettingError(f"Give either {own} or a budget (retention=, tokens=), not both; got {own}={value}.")

    @abstractmethod
    def select(self, features: Tensor, count: int | None) -> Tensor | Cut:
        """Which tokens stay.

        Args:
            features: (frames, tokens of each, width) float32.
            count: How many stay in all; None: `select` decides, and returns a cut.

        Returns:
            (count,) int64, ascending, of all frames' tokens one behind the other.
        """

    @abstractmethod
    def own_count(self, frames: tuple[int, ...]) -> int | None:
        """How many tokens stay of frames of so many each, by the method's own setting; None: the features decide."""

    def floor(self, frames: tuple[int, ...]) -> int:
        """The fewest tokens that the method leaves."""
        return min(1, sum(frames))

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
        return (
            ImageStage(
                side="behind",
                reads=self.reads,
                count=self._count,
                choose=self._choose,
                positions=numbering(self.positions),
                flops=self.flops,
            ),
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
        if not self.has_budget:
            return None if frames is None else self.own_count(frames)
        count = half_up(Budget(self.tokens, self.retention).mean(arriving.entered)) - arriving.reserved
        count = min(max(count, 1), arriving.tokens)
        if frames is not None:
            self._check_floor(count, frames, arriving)
        return count

    def _check_floor(self, count: int, frames: tuple[int, ...], arriving: Arriving) -> None:
        """Refuse a budget below what the method can do."""
        if count >= self.floor(frames):
            return
        least = self.floor(frames) + arriving.reserved
        raise BudgetError(
            f"{type(self).__name__} cannot keep {count + arriving.reserved} of {arriving.entered} vision tokens of "
            f"{len(frames)} frames: its floor is {least / arriving.entered:.2%}, {least} tokens. Give a larger budget.",
            floor=least / arriving.entered,
        )

    def _choose(self, view: ImageView, count: int | None) -> Cut | None:
        if count == len(view):
            return None
        frames = view.arriving.frames
        if frames is None or len(set(frames)) > 1:
            raise UnsupportedError(
                f"{type(self).__name__} compares frames, and where the frames of these tokens begin is not known. "
                "Let no other stage of a chain drop tokens in front of it."
            )
        beside = [view[signal] for signal in self.reads if signal in view]
        features = torch.cat((view.features, *beside), dim=-1).float().reshape(len(frames), frames[0], -1)
        chosen = self.select(features, count)
        if isinstance(chosen, Cut):
            return chosen
        return Cut.take(chosen, len(view))


def change(now: Tensor, before: Tensor) -> Tensor:
    """1 − cosine of each row with its counterpart: (…, width) float32 twice -> (…).

    By ‖a − b‖² / 2 of the rows at length one: so rows that are equal are at exactly 0 and tie, where the cosine itself
    would be 1 give or take its rounding. A row of zeros is at 1 from every row, as its cosine is 0.
    """
    a, b = of_length_one(now, SHORTEST), of_length_one(before, SHORTEST)
    without_length = (a == 0).all(dim=-1).float() + (b == 0).all(dim=-1).float()
    return 0.5 * ((a - b).square().sum(dim=-1) + without_length)
