"""What is compared in a run, methods at budgets; and where its answers are kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.contract.method import Method
from foveate.contract.naming import draws, meeting, parse, with_seed
from foveate.errors import BudgetError, SettingError
from foveate.eval.answer_store import Answers, open_answers

__all__ = ["BASELINES", "EARLY", "METHODS", "SHARES", "Cell", "Plan", "cells_of", "contenders_of", "drawn"]

METHODS = ("v2drop", "visiondrop", "mustdrop")
SHARES = (1 / 3, 2 / 9, 1 / 9)
"""Budgets where none is given: 192, 128 and 64 of LLaVA-1.5's 576 tokens."""
BASELINES = ("random", "uniform", "averagepool", "resize")
EARLY = "cut before the decoder"
"""The note on a control that cannot meet its budget at its usual depth."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which methods run at which budgets.

        Plan(methods=["v2drop", "v2drop:metric=l1"], tokens=[192, 64])

    Attributes:
        methods: Their names, in the grammar of `foveate.contract.naming`.
        tokens: Budgets: mean vision tokens that a decoder layer processes.
        retention: The same as shares in (0, 1]; a third, two ninths and a ninth where neither is given.
        draws: Seeds of methods that draw at random.
        baselines: Whether Random, Uniform, AveragePool and Resize run too.
        cache: The folder where answers are kept; None is foveate/eval in the user's cache folder.
        fresh: Whether to ask everything again, in a new file beside the old one.

    Raises:
        SettingError: If budgets are given both ways, or a setting is unknown or of the wrong type.
        UnknownNameError: If there is no such method, preset or file.
    """

    methods: tuple[str, ...] = METHODS
    tokens: tuple[float, ...] = ()
    retention: tuple[float, ...] = ()
    draws: int = 3
    baselines: bool = True
    cache: str | Path | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.tokens and self.retention:
            raise SettingError("tokens and retention say the same thing; give one of them.")
        if self.draws < 1:
            raise SettingError(f"draws must be 1 or more; got {self.draws}.")
        self.contenders()

    @property
    def seeds(self) -> range:
        """Draws of a method that draws at random."""
        return range(self.draws)

    def contenders(self) -> dict[str, Method]:
        """What is compared, by name, the baselines last."""
        return contenders_of(dict.fromkeys((*self.methods, *(BASELINES if self.baselines else ()))))

    def shares_of(self, vision_tokens: int | None) -> tuple[float, ...]:
        """The budgets as shares, where every prompt has so many vision tokens; None: they differ.

        Raises:
            SettingError: If a budget is more than that, or is of tokens where they differ.
        """
        if not self.tokens:
            return self.retention or SHARES
        if vision_tokens is None:
            raise SettingError("Prompts differ in vision tokens here: give budgets as shares, with retention.")
        if max(self.tokens) > vision_tokens:
            most = max(self.tokens)
            raise SettingError(f"{most:g} tokens are more than the {vision_tokens} vision tokens of a picture.")
        return tuple(tokens / vision_tokens for tokens in self.tokens)

    def store(
        self, conditions: Mapping[str, Any], note: Callable[[str], object] = str
    ) -> AbstractContextManager[Answers]:
        """Where answers under these conditions are kept; see `foveate.eval.answer_store.open_answers`."""
        return open_answers(conditions, self.cache, fresh=self.fresh, note=note)


@dataclass(frozen=True)
class Cell:
    """A contender, a method as it was asked for, at a budget.

    Attributes:
        name: The contender's: "v2drop", "v2drop:metric=l1", or a preset.
        budget: Mean over decoder layers as it was asked for: a share of the vision tokens, or, above 1, a number of
            them; None where a preset brings its own.
        draws: The methods to run: one, or one a seed; none where the budget cannot be reached.
        infeasible: Why it cannot.
        floor: The lowest share that can be, where it is known.
        note: What is unusual about the setting.
    """

    name: str
    budget: float | None
    draws: tuple[Method, ...]
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
    *,
    of_tokens: bool = False,
) -> list[Cell]:
    """A cell for each contender and budget; one alone for a contender that takes none or brings its own.

    Args:
        contenders: What is compared, by name.
        model: A model or its config.
        budgets: Mean shares of the vision tokens that a decoder layer processes, or numbers of them.
        vision_tokens: Tokens of each picture, where all have the same count.
        seeds: Draws of a method that draws at random.
        of_tokens: Whether budgets are numbers; whether one can be met then depends on the sample.
    """
    cells = []
    for name, method in contenders.items():
        shares: Sequence[float | None] = budgets if method.open else [None]
        for share in shares:
            if of_tokens and share is not None:
                cells.append(Cell(name, share, drawn(method.with_budget(tokens=share), seeds)))
                continue
            try:
                met, early = meeting(method, model, share, vision_tokens)
            except BudgetError as error:
                cells.append(Cell(name, share, (), infeasible=str(error), floor=error.floor))
            else:
                cells.append(Cell(name, share, drawn(met, seeds), note=EARLY if early else ""))
    return cells


def drawn(method: Method, seeds: Sequence[int]) -> tuple[Method, ...]:
    """A method a seed where it draws at random, else the method alone."""
    return tuple(with_seed(method, seed) for seed in seeds) if draws(method) else (method,)
