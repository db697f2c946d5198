"""`Once`: base class of methods that reduce every image once, before the decoder."""

from typing import Any, ClassVar

from foveate.contract.budget import Budget, half_up
from foveate.contract.cuts import Cuts
from foveate.contract.settings import Positions
from foveate.contract.stages import CountRule, ImageStage, Shape
from foveate.core.signals import Cls, Signal, TowerAttention, TowerKeys
from foveate.core.views import Arriving


class Once(Cuts):
    """One cut before the decoder. Every layer processes the same rows, so a budget is the number of rows.

    A subclass writes `score` or `pick`, which see the rows that enter the decoder. One that works earlier, such as
    before the projector, writes `steps` instead. Settings named `keep`, `positions` and `scope` take effect without
    further code.

    Attributes:
        keep: Share of an image's vision tokens that enter the decoder, in (0, 1], rounded to a number of tokens.
        tokens: Instead of `keep`: how many tokens of an image enter.
        retention: The budget's name for `keep`.
        positions: See `Positions`. The released code of most papers corresponds to "reindex".
    """

    usual: ClassVar[float] = 1 / 9
    """The share that enters if nothing is set: 64 of LLaVA-1.5's 576 tokens."""
    halves_up: ClassVar[bool] = False
    """Whether 2.5 rows round to 3 instead of 2, the even number."""
    usual_layers = ()
    usual_keep = None
    layers_setting = "layer"
    unit = "image"
    falls = "geometric"
    whole_at = ("keep", 1)

    def cuts(self, depth: int) -> tuple[int, ...]:
        return (0,)

    def count(self, depth: int, index: int, arriving: Arriving) -> int:
        return self.rows(arriving)

    def mean(self, arriving: Arriving) -> float:
        """Return the number of rows asked for of an image, not rounded."""
        keep = getattr(self, "keep", None)
        budget = self.budget or Budget(retention=self.usual if keep is None else keep)
        return budget.mean(arriving.entered)

    def rows(self, arriving: Arriving) -> int:
        """Return the number of rows of an image to pick, at least one. A newline that the family adds is subtracted."""
        mean = self.mean(arriving)
        rows = half_up(mean) if self.halves_up else round(mean)
        return min(arriving.tokens, max(1, rows - arriving.reserved))


def merging_stage(shape: Shape, positions: Positions, count: CountRule, cls: bool = True, **way: Any) -> ImageStage:
    """Build a stage before the projector that ranks by attention and merges by keys.

    With `cls`, the tower's CLS becomes a row if rows are renumbered, because it has no position of its own. In a tower
    without CLS, a token's score is the mean attention that it receives.
    """
    feeds_cls = cls and shape.numbers_anew(positions)
    reads: tuple[Signal, ...] = (TowerAttention(by=shape.payer), TowerKeys())
    if feeds_cls:
        reads = (*reads, Cls())
    return ImageStage(reads=reads, count=count, positions=positions, ownerless=feeds_cls, **way)
