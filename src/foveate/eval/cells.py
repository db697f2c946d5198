"""What is compared: methods at budgets, each a cell, with its draws and with what cannot be reached."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from foveate.errors import BudgetError
from foveate.methods.base import Method
from foveate.methods.chain import Chain
from foveate.methods.grammar import read
from foveate.methods.named import Named
from foveate.methods.scheduled import Scheduled
from foveate.methods.values import settings_of

__all__ = ["BASELINES", "Cell", "Contender", "before_decoder", "with_baselines"]

D = TypeVar("D", covariant=True)

BASELINES = ("random", "uniform", "averagepool", "resize")


@dataclass(frozen=True)
class Contender:
    """A method as it was asked for.

    Attributes:
        named: What its name says.
    """

    named: Named

    @classmethod
    def of(cls, text: str) -> "Contender":
        """The one that a text names, in the grammar of `foveate.methods.names`.

        Raises:
            FoveateError: If a setting is unknown or of the wrong type, or there is no such method, preset or file.
        """
        named = read(text)
        named.check()
        return cls(named)

    @property
    def name(self) -> str:
        """Under which it appears: "v2drop", "v2drop:metric=l1", or a preset."""
        return self.named.text

    def draws(self, method: Method, seeds: Sequence[int]) -> tuple[Method, ...]:
        """A method's draws: one, or one a seed where it draws by lot and nobody said which."""
        return tuple(_seeded(method, seed) for seed in seeds) if self.named.drawn else (method,)

    def cells(
        self, model: Any, budgets: Sequence[float], vision_tokens: int | None, seeds: Sequence[int]
    ) -> "list[Cell[Method]]":
        """A cell for each budget (shares of the vision tokens); one alone for what takes none or brings its own.

        Args:
            model: A model or its config.
            budgets: Mean shares that a decoder layer processes.
            vision_tokens: Tokens of each picture, where all have the same count.
            seeds: Draws of a method that draws by lot.
        """
        if not self.named.settled:
            return [self._cell(model, budget, vision_tokens, seeds) for budget in budgets]
        try:
            fixed = self.named.solved(model, vision_tokens=vision_tokens)
        except BudgetError as error:
            return [Cell(self.name, None, (), infeasible=str(error), floor=error.floor)]
        return [Cell(self.name, None, self.draws(fixed, seeds))]

    def _cell(self, model: Any, budget: float, vision_tokens: int | None, seeds: Sequence[int]) -> "Cell[Method]":
        note = ""
        try:
            found = self.named.solved(model, retention=budget, vision_tokens=vision_tokens)
        except BudgetError as error:
            if (early := before_decoder(self.named)) is None:
                return Cell(self.name, budget, (), infeasible=str(error), floor=error.floor)
            found = early.solved(model, retention=budget, vision_tokens=vision_tokens)
            note = "cut before the decoder"
        return Cell(self.name, budget, self.draws(found, seeds), note=note)


def before_decoder(named: Named) -> Named | None:
    """A control that cannot meet a budget at its usual depth, cutting before the decoder; None where it cannot."""
    (member, *others) = named.members
    able = issubclass(member.kind, Scheduled) and member.kind.first_layer == 0 and "layers" not in member.values
    return named.with_values({"layers": (0,)}) if able and not others else None


def _seeded(method: Method, seed: int) -> Method:
    """It with this draw; of a chain, whoever draws."""
    if isinstance(method, Chain):
        return dataclasses.replace(method, members=tuple(_seeded(member, seed) for member in method.members))
    return dataclasses.replace(method, seed=seed) if "seed" in settings_of(type(method)) else method  # type: ignore[type-var]


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
    return found + [Contender.of(name) for name in BASELINES if name not in names]
