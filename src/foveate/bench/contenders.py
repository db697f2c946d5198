"""Methods at budgets, solved for one model and one prompt."""

from collections.abc import Sequence
from typing import Any

from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method
from foveate.methods.grammar import read
from foveate.methods.named import RETENTION, Named

__all__ = ["METHODS", "at_budgets", "named_methods"]

METHODS = ("v2drop", "visiondrop", "mustdrop")
"""What is timed where nobody names a method."""


def named_methods(names: Sequence[str]) -> list[Named]:
    """The methods of these names, checked before any model is made.

    Raises:
        FoveateError: If there is no such method, preset or file, or a setting does not fit.
    """
    methods = [read(name) for name in names or METHODS]
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
) -> tuple[dict[str, Method], dict[str, str]]:
    """Every method at every budget, by the name of its row; and why some cannot meet theirs, by name.

    Args:
        methods: See `named_methods`; one with a schedule of its own stays as it is.
        model: A model or its config.
        vision_tokens: Of the prompt.
        tokens: Budgets, in mean vision tokens a decoder layer.
        retention: The same as shares. Without either it is a third.
        seed: Of methods that drop at random.

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
            except BudgetError as error:
                infeasible[label] = str(error)
                continue
            feasible[label] = named.seeded(method, seed)
    if not feasible:
        raise SettingError(" ".join(infeasible.values()))
    return feasible, infeasible


def _labels(named: Named, shares: Sequence[float], vision_tokens: int) -> dict[str, float | None]:
    """Names of rows and the budget of each; a method that takes none has one row."""
    if named.settled:
        return {named.text: None}
    return {f"{named.text} {share * vision_tokens:.0f}": share for share in shares}
