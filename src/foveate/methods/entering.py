"""What methods share that reduce every image once, before the decoder: their budget, as a count or as a share."""

from typing import Any, ClassVar, Self

from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method
from foveate.methods.schedule import Budget, half_up
from foveate.methods.settings import Share, Tokens
from foveate.methods.stages import Arriving

__all__ = ["Entering", "EnteringShare"]


class Entering(Method):
    """Every decoder layer processes the same rows of an image, so a budget is their number: no schedule is solved.

    Attributes:
        retention: The share of an image's vision tokens that enters the decoder, in (0, 1].
        tokens: The same as a number of tokens.
    """

    setting: ClassVar[str] = "retention"
    """The setting that a solved budget becomes."""
    usual_retention: ClassVar[float | None] = None
    """What `retention` is if no budget is given; None where other settings say how many rows an image has."""

    retention: Share | None = None
    tokens: Tokens | None = None

    def check_settings(self) -> None:
        if not self.has_budget and self.usual_retention is not None:
            self._set(retention=self.usual_retention)
        if self.has_budget:
            Budget(self.tokens, self.retention)

    @property
    def has_budget(self) -> bool:
        """Whether a budget says how many rows an image has."""
        return self.retention is not None or self.tokens is not None

    @property
    def keeps_all(self) -> bool:
        """Whether the budget keeps every token of every image, so that no stage is needed."""
        return self.retention == 1

    @property
    def budget(self) -> Budget:
        """What was given, whichever it was."""
        return Budget(self.tokens, self.retention)

    def rows(self, arriving: Arriving) -> int:
        """Rows of an image by the budget, at least one; a newline that the family adds by itself is one of them."""
        mean = self.budget.mean(arriving.entered)
        return min(arriving.tokens, max(1, half_up(mean) - arriving.reserved))

    @classmethod
    def solved(cls, share: float, entered: int | None, depth: int, /, **values: Any) -> Self:
        """The share itself, as all layers process as many rows. See `Method.solved`."""
        if entered is not None and share * entered < 1 - 1e-6:
            raise BudgetError(
                f"{cls.__name__} cannot keep {share * entered:.4g} of {entered} vision tokens: its floor is 1 token, "
                f"{1 / entered:.2%}. Give a larger budget.",
                floor=1 / entered,
            )
        return cls(**{cls.setting: share}, **values)


class EnteringShare(Entering):
    """The same with `keep`, a share that is there by default.

    Attributes:
        keep: Share of an image's vision tokens that enter the decoder, in (0, 1].
        tokens: Instead of `keep`: how many tokens of an image enter.
        retention: Another name for `keep`: the name that budgets have.
    """

    usual_keep: ClassVar[float]
    """What `keep` is if nothing is said."""
    setting: ClassVar[str] = "keep"
    schedule: ClassVar[tuple[str, ...]] = ("keep",)

    keep: Share | None = None

    def check_settings(self) -> None:
        budgets = [value for value in (self.keep, self.tokens, self.retention) if value is not None]
        if len(budgets) > 1:
            raise SettingError(
                f"Give one of keep=, tokens= and retention=; got keep={self.keep}, tokens={self.tokens}, "
                f"retention={self.retention}."
            )
        if not budgets:
            self._set(keep=self.usual_keep)
        if 0 in (self.keep, self.retention):
            raise SettingError(f"{type(self).__name__}: keep should be above 0 and at most 1; got {0.0}.")

    @property
    def keeps_all(self) -> bool:
        """Whether every token enters."""
        return 1 in (self.keep, self.retention)

    @property
    def budget(self) -> Budget:
        return Budget(self.tokens, self.retention if self.keep is None else self.keep)
