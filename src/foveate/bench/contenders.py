"""Methods at budgets, solved for one model and one prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.contract import catalogue
from foveate.contract.method import Method
from foveate.contract.naming import RETENTION, meeting, parse, with_seed
from foveate.errors import BudgetError, SettingError
from foveate.methods.random import Random

__all__ = ["ALL", "METHODS", "at_budgets", "compared", "named_methods"]

METHODS = ("v2drop", "visiondrop", "mustdrop")
"""What is timed where nobody names a method."""
ALL = "all"
"""Every registered method."""


def named_methods(names: Sequence[str]) -> dict[str, Method]:
    """The methods of these names, before any model is made; none stand for `METHODS`.

    Raises:
        FoveateError: If there is no such method, preset or file, or a setting does not fit.
    """
    return {name: parse(name) for name in names or METHODS}


def at_budgets(
    methods: Mapping[str, Method],
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
        methods: By name; one with a schedule of its own stays as it is.
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
    for name, method in methods.items():
        for label, share in _labels(name, method, shares, vision_tokens).items():
            try:
                solved, _ = meeting(method, config, share, vision_tokens)
            except passes_over as error:
                infeasible[label] = str(error)
                continue
            feasible[label] = with_seed(solved, seed)
    if not feasible:
        raise SettingError(" ".join(infeasible.values()))
    return feasible, infeasible


def compared(names: Sequence[str]) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that are compared with random dropping, for `at_budgets`; and why others are not, by name.

    Args:
        names: Of methods; `ALL` alone is every registered one that takes a budget.

    Raises:
        FoveateError: If a name is wrong, or only random dropping is named.
    """
    every = tuple(names) == (ALL,)
    methods = {name: kind() for name, kind in sorted(catalogue.methods().items())} if every else named_methods(names)
    methods.pop(Random.name, None)
    if not methods:
        raise SettingError("Random dropping is what others are compared with. Name one.")
    left_out: dict[str, str] = {}
    if every:
        left_out = {name: "takes no budget." for name, method in methods.items() if not method.open}
    return {name: method for name, method in methods.items() if name not in left_out}, left_out


def _labels(name: str, method: Method, shares: Sequence[float], vision_tokens: int) -> dict[str, float | None]:
    """Names of rows and the budget of each; a method that takes none has one row."""
    if not method.open:
        return {name: None}
    return {f"{name} {share * vision_tokens:.0f}": share for share in shares}
