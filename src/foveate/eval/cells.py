"""What is compared: methods at budgets, each a cell, with its draws and with what cannot be reached."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from foveate.errors import BudgetError
from foveate.methods.base import Method
from foveate.methods.grammar import read
from foveate.methods.named import Named

__all__ = ["BASELINES", "EARLY", "Cell", "cells_of", "contender", "with_baselines"]

D = TypeVar("D", covariant=True)

EARLY = "cut before the decoder"
"""The note on a control that cannot meet its budget at its usual depth."""
BASELINES = ("random", "uniform", "averagepool", "resize")


@dataclass(frozen=True)
class Cell(Generic[D]):
    """A contender, a method as it was asked for, at a budget.

    Attributes:
        name: The contender's: "v2drop", "v2drop:metric=l1", or a preset.
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


def contender(text: str) -> Named:
    """The method that a text names, in the grammar of `foveate.methods.names`; checked before any model is loaded.

    Raises:
        FoveateError: If a setting is unknown or of the wrong type, or there is no such method, preset or file.
    """
    named = read(text)
    named.check()
    return named


def with_baselines(contenders: Iterable[Named]) -> list[Named]:
    """The contenders, and behind them every baseline that is not among them as it is."""
    listed = list(contenders)
    names = {named.text for named in listed}
    return listed + [contender(name) for name in BASELINES if name not in names]


def cells_of(
    contenders: Iterable[Named], model: Any, budgets: Sequence[float], vision_tokens: int | None, seeds: Sequence[int]
) -> list[Cell[Method]]:
    """A cell for each contender and budget; one alone for a contender that takes none or brings its own.

    Args:
        contenders: What is compared.
        model: A model or its config.
        budgets: Mean shares of the vision tokens that a decoder layer processes.
        vision_tokens: Tokens of each picture, where all have the same count.
        seeds: Draws of a method that draws at random.
    """
    cells = []
    for named in contenders:
        shares: Sequence[float | None] = [None] if named.settled else budgets
        cells += [_cell(named, model, share, vision_tokens, seeds) for share in shares]
    return cells


def _cell(
    named: Named, model: Any, share: float | None, vision_tokens: int | None, seeds: Sequence[int]
) -> Cell[Method]:
    try:
        method, early = named.solved_early(model, share, vision_tokens)
    except BudgetError as error:
        return Cell(named.text, share, (), infeasible=str(error), floor=error.floor)
    draws: tuple[Method, ...] = (method,)
    if named.drawn:
        draws = tuple(named.seeded(method, seed) for seed in seeds)
    return Cell(named.text, share, draws, note=EARLY if early else "")
