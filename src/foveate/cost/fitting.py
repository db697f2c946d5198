"""Search for the largest setting within a budget whose price can only be evaluated: FLOPs, or tokens on pictures."""

from collections.abc import Callable, Iterable, Mapping
from math import ceil
from typing import Any, TypeVar

from foveate.contract.method import Method
from foveate.core.tensors import alike
from foveate.cost._cost import Cost
from foveate.errors import BudgetError, SettingError

M = TypeVar("M")
Costs = Mapping[Callable[[Method | None], Cost], int]
"""For each kind of prompt, a function that returns its cost with a method, and the number of such prompts."""
EXACT = 1e-9
"""Tolerance for rounding errors in a price, as a share of the budget."""


def largest(
    build: Callable[[float], M], price: Callable[[M], float], limit: float, *, near: float = 0.001, tries: int = 12
) -> M | None:
    """Find the largest setting with a price of at most `limit`, by bisection; None if there is none.

    Args:
        build: Returns the setting for a number from 0 to 1; its price grows with the number. Raises BudgetError if the
            number is too small.
        price: Returns the price of a setting.
        limit: The maximum price.
        near: Stop when at most this share of the limit is unspent.
        tries: The maximum number of settings to price.
    """
    low, high = 0.0, 1.0
    best = None
    for _ in range(tries):
        middle = (low + high) / 2
        try:
            setting = build(middle)
            spent = price(setting)
        except BudgetError:
            low = middle
            continue
        if spent > limit * (1 + EXACT):
            high = middle
            continue
        low, best = middle, setting
        if limit - spent <= near * limit:
            break
    return best


def within_flops(method: Method, share: float, costs: Costs) -> Method:
    """Return the method with the largest retention at which prompts use `share` of the full model's FLOPs, on average.

    Args:
        method: A method that takes a budget.
        share: The share of the FLOPs to the first token, in (0, 1).
        costs: The costs of the prompts; see `costs_of`.

    Raises:
        BudgetError: If the method cannot use so few FLOPs.
        SettingError: If the share is out of range, FLOPs are not counted, or they depend on the picture.
    """
    if not 0 < share < 1:
        raise SettingError(f"flops must be above 0 and below 1, a share of the full model's; got {share}.")
    if hasattr(method, "at_scale"):
        raise SettingError(
            f"{method} keeps a number of tokens that depends on the picture, so it cannot take a budget of FLOPs. "
            "Leave it out."
        )
    full = {cost: _flops(cost(None)) for cost in costs}

    def price(setting: Method) -> float:
        return sum(count * _flops(cost(setting)) / full[cost] for cost, count in costs.items()) / sum(costs.values())

    def at(retention: float) -> Method:
        return method.with_budget(retention=retention)

    best = largest(at, price, share)
    if best is None:
        floor, words = _floor(at, price), ""
        if floor is not None:
            words = f", so its floor is {ceil(1000 * floor) / 10:g}%"
        raise BudgetError(f"{method} cannot take {share:.1%} of the full model's FLOPs{words}. Give more.", floor)
    return best


def _floor(at: Callable[[float], Method], price: Callable[[Method], float]) -> float | None:
    """Return the price at the lowest retention that every prompt allows; None if that is not known."""
    retention: float | None = EXACT
    while retention is not None:
        try:
            return price(at(retention))
        except BudgetError as error:
            retention = max((floor for floor in [error.floor] if floor and floor > retention), default=None)
    return None


def costs_of(prompts: Iterable[Any]) -> Costs:
    """Group prompts of equal cost: return `Prompt.cost` of one prompt per group, and the size of the group."""
    prompts = list(prompts)
    kinds = alike((prompt.text_tokens, prompt.sizes, str(prompt.grids)) for prompt in prompts)
    return {prompts[places[0]].cost: len(places) for places in kinds}


def _flops(cost: Cost) -> int:
    if cost.total_flops is None:
        raise SettingError("FLOPs of the tower are not counted: use a budget of tokens or a retention.")
    return cost.total_flops
