"""What AveragePool and Resize share: an image's token grid gets coarser before the decoder, by a share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from foveate.core.grid import Grid, closing_rows, coarser
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Cut, Method, View, share

__all__ = ["GridMethod"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GridMethod(Method):
    """Coarser token grids before the decoder.

    Attributes:
        keep: Share of an image's vision tokens that its grids may have afterwards, in (0, 1]. The grid is the one of
            at most so many tokens that comes nearest to them and keeps the aspect; every grid keeps one token.

    Raises:
        SettingError: If the share leaves its range.
    """

    keep: float = 1 / 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", float(self.keep))
        if not 0 < self.keep <= 1:
            raise SettingError(f"keep is a share in (0, 1]; got {self.keep}.")

    @property
    def together(self) -> bool:
        return True

    @property
    def reduces_tower(self) -> bool:
        return self.keep < 1

    def cuts(self) -> tuple[int, ...]:
        return ()

    def cut(self, view: View) -> Cut | None:
        """Nothing leaves between decoder layers."""
        return None

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        each = (self.keep * entered - reserved) / sum(rows * columns for rows, columns in grids)
        return tuple(coarser((rows, columns), each * rows * columns) for rows, columns in grids)

    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
        """None unless all stays: a count alone does not say how wide a grid is (see `plan_grids`)."""
        return (sum(sizes),) * depth if self.keep == 1 or not sizes else None

    def plan_grids(self, depth: int, sizes: Sequence[int], grids: Sequence[Sequence[Grid]]) -> tuple[int, ...] | None:
        if self.keep == 1:
            return self.plan(depth, sizes)
        counts = [self._left(size, tuple(mine)) for size, mine in zip(sizes, grids, strict=True)]
        known = [count for count in counts if count is not None]
        return (sum(known),) * depth if len(known) == len(counts) else None

    def _left(self, size: int, grids: tuple[Grid, ...]) -> int | None:
        """Rows left of an image of `size` tokens, newlines among them; None where they cannot be told."""
        stay = closing_rows(size - _count(grids))
        cells = self.coarsen(grids, size, stay)
        return size if cells == grids else _count(cells) + stay

    @classmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        **settings: Any,
    ) -> Self:
        """The share a budget is; what is spent is the nearest grid below it (see `foveate.core.grid.coarser`).

        Every decoder layer sees the same tokens, so the mean over them is their count.

        Args:
            model: A model or its config.
            tokens: Vision tokens a layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count; families with a fixed count know their own.
            settings: Other settings of the method.

        Raises:
            BudgetError: If the budget is less than one token.
            SettingError: If the budget is contradictory.
        """
        target, count = share(model, tokens, retention, vision_tokens)
        if count is not None and target * count < 1 - 1e-6:
            raise BudgetError(
                f"{cls.__name__} cannot leave {target * count:.4g} of {count} vision tokens: its floor is 1 token, "
                f"{1 / count:.2%}. Ask for more.",
                floor=1 / count,
            )
        return cls(keep=target, **settings)


def _count(grids: Sequence[Grid]) -> int:
    return sum(rows * columns for rows, columns in grids)
