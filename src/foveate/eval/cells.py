"""What is compared: methods at budgets, each a cell, with its draws and with what cannot be reached."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from foveate.contract.method import Method
from foveate.contract.naming import draws, meeting, parse, with_seed
from foveate.errors import BudgetError

__all__ = ["BASELINES", "EARLY", "Cell", "cells_of", "contenders_of", "drawn"]

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


def contenders_of(names: Iterable[str]) -> dict[str, Method]:
    """The methods that texts name, by these, in the grammar of `foveate.contract.naming`; before any model is loaded.

    Raises:
        FoveateError: If a setting is unknown or of the wrong type, or there is no such method, preset or file.
    """
    return {name: parse(name) for name in names}


def cells_of(
    contenders: Mapping[str, Method],
    model: Any,
    budgets: Sequence[float],
    vision_tokens: int | None,
    seeds: Sequence[int],
) -> list[Cell[Method]]:
    """A cell for each contender and budget; one alone for a contender that takes none or brings its own.

    Args:
        contenders: What is compared, by name.
        model: A model or its config.
        budgets: Mean shares of the vision tokens that a decoder layer processes.
        vision_tokens: Tokens of each picture, where all have the same count.
        seeds: Draws of a method that draws at random.
    """
    cells = []
    for name, method in contenders.items():
        shares: Sequence[float | None] = budgets if method.open else [None]
        cells += [_cell(name, method, model, share, vision_tokens, seeds) for share in shares]
    return cells


def _cell(
    name: str, method: Method, model: Any, share: float | None, vision_tokens: int | None, seeds: Sequence[int]
) -> Cell[Method]:
    try:
        method, early = meeting(method, model, share, vision_tokens)
    except BudgetError as error:
        return Cell(name, share, (), infeasible=str(error), floor=error.floor)
    return Cell(name, share, drawn(method, seeds), note=EARLY if early else "")


def drawn(method: Method, seeds: Sequence[int]) -> tuple[Method, ...]:
    """A method a seed where it draws at random, else the method alone."""
    return tuple(with_seed(method, seed) for seed in seeds) if draws(method) else (method,)
