"""What is compared: methods at budgets, each a cell, with its draws and with what cannot be reached."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from foveate.errors import BudgetError
from foveate.methods.base import Method
from foveate.methods.staged import StagedMethod
from foveate.registry import method as kind_of

__all__ = ["BASELINES", "Cell", "Contender", "with_baselines"]

D = TypeVar("D", covariant=True)

BASELINES = ("random", "uniform", "averagepool", "resize")


@dataclass(frozen=True)
class Contender:
    """A method as it was asked for.

    Attributes:
        name: Under which it appears: "v2drop", "v2drop:metric=l1", or a preset.
        kind: The method's class.
        settings: What was set beside the budget.
        fixed: A whole setting, such as a preset, that brings its own budget; else None.
    """

    name: str
    kind: type[Method]
    settings: Mapping[str, Any] = field(default_factory=dict)
    fixed: Method | None = None

    @property
    def drawn(self) -> bool:
        """Whether it draws by lot, and nobody said which draw."""
        known = {field.name for field in dataclasses.fields(self.kind)}  # type: ignore[arg-type]
        return "seed" in known and "seed" not in self.settings

    def cells(
        self, model: Any, budgets: Sequence[float], vision_tokens: int | None, seeds: Sequence[int]
    ) -> "list[Cell[Method]]":
        """A cell for each budget (shares of the vision tokens); one alone for a fixed setting.

        Args:
            model: A model or its config.
            vision_tokens: Tokens of each picture, where all have the same count.
            seeds: Draws of a method that draws by lot.
        """
        if self.fixed is not None:
            return [Cell(self.name, None, (self.fixed,))]
        return [self._cell(model, budget, vision_tokens, seeds) for budget in budgets]

    def _cell(self, model: Any, budget: float, vision_tokens: int | None, seeds: Sequence[int]) -> "Cell[Method]":
        asked = {"retention": budget, "vision_tokens": vision_tokens, **self.settings}
        note = ""
        try:
            found = self.kind.for_budget(model, **asked)
        except BudgetError as error:
            if not (issubclass(self.kind, StagedMethod) and self.kind.first_layer == 0 and "layers" not in asked):
                return Cell(self.name, budget, (), infeasible=str(error), floor=error.floor)
            found, note = self.kind.for_budget(model, **asked, layers=(0,)), "cut before the decoder"
        draws = [dataclasses.replace(found, seed=seed) for seed in seeds] if self.drawn else [found]  # type: ignore[type-var]
        return Cell(self.name, budget, tuple(draws), note=note)


@dataclass(frozen=True)
class Cell(Generic[D]):
    """A contender at a budget.

    Attributes:
        name: The contender's.
        budget: Share of the vision tokens asked for, mean over decoder layers; None where a preset brings its own.
        draws: The settings to run: one, or one a seed; none where the budget cannot be reached.
        infeasible: Why it cannot.
        floor: The lowest share that can be, where it is known.
        note: What is unusual about the setting.
    """

    name: str
    budget: float | None
    draws: tuple[D, ...]
    infeasible: str = ""
    floor: float | None = None
    note: str = ""


def with_baselines(contenders: Iterable[Contender]) -> list[Contender]:
    """The contenders, and behind them every baseline that is not among them as it is."""
    found = list(contenders)
    names = {one.name for one in found}
    return found + [Contender(name, kind_of(name)) for name in BASELINES if name not in names]
