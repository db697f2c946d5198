"""Methods at budgets, solved for one model and one prompt."""

from collections.abc import Sequence
from typing import Any

from foveate.errors import BudgetError, SettingError
from foveate.methods import catalogue
from foveate.methods.base import Method
from foveate.methods.grammar import read
from foveate.methods.named import RETENTION, Named
from foveate.methods.random import Random

__all__ = ["ALL", "METHODS", "at_budgets", "compared", "named_methods"]

METHODS = ("v2drop", "visiondrop", "mustdrop")
"""What is timed where nobody names a method."""
ALL = "all"
"""Every registered method."""


def named_methods(names: Sequence[str], check: bool = True) -> list[Named]:
    """The methods of these names, checked before any model is made.

    Args:
        names: As they were written; none stand for `METHODS`.
        check: Whether their settings are checked too.

    Raises:
        FoveateError: If there is no such method, preset or file, or a setting does not fit.
    """
    methods = [read(name) for name in names or METHODS]
    if check:
        for named in methods:
            named.check()
    return methods


def at_budgets(
    methods: Sequence[Named],
    model: Any,
    vision_tokens: int,
    *,
    tokens: Sequence[float] = (),
    retention: Sequence[float] = (),
    seed: int = 0,
    passes_over: type[SettingError] = BudgetError,
) -> tuple[dict[str, Method], dict[str, str]]:
    """Every method at every budget, by the name of its row; and why some cannot meet theirs, by name.

    Args:
        methods: See `named_methods`; one with a schedule of its own stays as it is.
        model: A model or its config.
        vision_tokens: Of the prompt.
        tokens: Budgets, in mean vision tokens a decoder layer.
        retention: The same as shares. Without either it is a third.
        seed: Of methods that drop at random.
        passes_over: Errors of a method that only keep it out; others are raised.

    Raises:
        SettingError: If a budget exceeds the prompt, or no method can meet any.
    """
    if tokens and max(tokens) > vision_tokens:
        raise SettingError(f"A budget of {max(tokens):g} tokens: the prompt has {vision_tokens} vision tokens.")
    shares = tuple(retention) or tuple(count / vision_tokens for count in tokens) or (RETENTION,)
    config = getattr(model, "config", model)
    feasible: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    for named in methods:
        for label, share in _labels(named, shares, vision_tokens).items():
            try:
                method, _ = named.solved_early(config, share, vision_tokens)
            except passes_over as error:
                infeasible[label] = str(error)
                continue
            feasible[label] = named.seeded(method, seed)
    if not feasible:
        raise SettingError(" ".join(infeasible.values()))
    return feasible, infeasible


def compared(names: Sequence[str]) -> tuple[list[Named], dict[str, str]]:
    """The methods that are compared with random dropping, for `at_budgets`; and why others are not, by name.

    Args:
        names: Of methods; `ALL` alone is every registered one that takes a budget.

    Raises:
        FoveateError: If a name is wrong, or only random dropping is named.
    """
    every = tuple(names) == (ALL,)
    methods = named_methods(sorted(catalogue.methods()) if every else names, check=not every)
    others = [named for named in methods if named.text != Random.name]
    if not others:
        raise SettingError("Random dropping is what others are compared with. Name one.")
    left_out: dict[str, str] = {}
    if every:
        left_out = {named.text: "takes no budget." for named in others if named.settled}
    return [named for named in others if named.text not in left_out], left_out


def _labels(named: Named, shares: Sequence[float], vision_tokens: int) -> dict[str, float | None]:
    """Names of rows and the budget of each; a method that takes none has one row."""
    if named.settled:
        return {named.text: None}
    return {f"{named.text} {share * vision_tokens:.0f}": share for share in shares}
