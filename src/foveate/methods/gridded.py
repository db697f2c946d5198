"""What AveragePool and Resize share: an image's token grids get coarser before the decoder, by a share."""

from typing import Any, ClassVar, Self

from foveate.core.grid import Grid, coarser
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method
from foveate.methods.schedule import Budget
from foveate.methods.settings import Share, Tokens
from foveate.methods.stages import Arriving

__all__ = ["Gridded"]


class Gridded(Method):
    """Coarser token grids before the decoder.

    Attributes:
        keep: Share of an image's vision tokens that its grids may have afterwards, in (0, 1]. The new grid is the
            largest within this share that is near the picture's aspect ratio; every grid keeps one token.
        tokens: Instead of `keep`: the number of tokens that an image's grids may have.
        retention: Another name for `keep`: the name that budgets have.
    """

    schedule: ClassVar[tuple[str, ...]] = ("keep",)

    keep: Share | None = None
    tokens: Tokens | None = None
    retention: Share | None = None

    def check_settings(self) -> None:
        budgets = [value for value in (self.keep, self.tokens, self.retention) if value is not None]
        if len(budgets) > 1:
            raise SettingError(
                f"Give one of keep=, tokens= and retention=; got keep={self.keep}, tokens={self.tokens}, "
                f"retention={self.retention}."
            )
        if not budgets:
            self._set(keep=1 / 3)
        if 0 in (self.keep, self.retention):
            raise SettingError(f"{type(self).__name__}: keep should be above 0 and at most 1; got {0.0}.")

    @property
    def keeps_all(self) -> bool:
        """Whether the grids stay as they are."""
        return 1 in (self.keep, self.retention)

    def coarsen(self, arriving: Arriving) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become."""
        share = self.retention if self.keep is None else self.keep
        mean = Budget(self.tokens, share).mean(arriving.entered)
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

    @classmethod
    def solved(cls, share: float, entered: int | None, depth: int, /, **values: Any) -> Self:
        """The share itself: what is spent is the nearest grid below it, in every layer. See `Method.solved`."""
        if entered is not None and share * entered < 1 - 1e-6:
            raise BudgetError(
                f"{cls.__name__} cannot keep {share * entered:.4g} of {entered} vision tokens: its floor is 1 token, "
                f"{1 / entered:.2%}. Give a larger budget.",
                floor=1 / entered,
            )
        return cls(keep=share, **values)
