"""The largest setting that a budget pays for, where its price must be tried: FLOPs, or what pictures spend."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from foveate.contract.method import Method
from foveate.cost._cost import Cost
from foveate.errors import BudgetError, SettingError

M = TypeVar("M")
Costs = Mapping[Callable[[Method | None], Cost], int]
"""What each kind of prompt costs with a method, and how many prompts there are of it."""
EXACT = 1e-9
"""What float rounding may add to a price, as a share of the budget."""


def largest(
    build: Callable[[float], M], price: Callable[[M], float], limit: float, *, near: float = 0.001, tries: int = 12
) -> M | None:
    """The largest setting whose price is at most `limit`, by bisection; None if there is none.

    Args:
        build: A setting of each number from 0 to 1; its price grows with the number. A BudgetError says that the number
            is below what can be.
        price: What a setting costs.
        limit: What may be spent.
        near: What leaves no more than this share of the limit unspent is near enough.
        tries: Settings that are priced at most.
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
    """The method with the largest retention at which prompts take `share` of the full model's FLOPs, on average.

    Args:
        method: One that takes a budget.
        share: Of the FLOPs to the first token, in (0, 1).
        costs: Of all prompts; see `costs_of`.

    Raises:
        BudgetError: If the method cannot spend so little.
        SettingError: If the share leaves its range, FLOPs are not counted, or the picture decides them.
    """
    if not 0 < share < 1:
        raise SettingError(f"flops must be above 0 and below 1, a share of the full model's; got {share}.")
    if hasattr(method, "at_scale"):
        raise SettingError(
            f"{method} keeps what the picture decides: no budget of FLOPs is solved for it. Leave it out."
        )
    full = {cost: _flops(cost(None), None) for cost in costs}

    def price(setting: Method) -> float:
        return sum(count * _flops(cost(setting), setting) / full[cost] for cost, count in costs.items()) / sum(
            costs.values()
        )

    best = largest(lambda retention: method.with_budget(retention=retention), price, share)
    if best is None:
        raise BudgetError(f"{method} cannot take {share:.1%} of the full model's FLOPs. Give a larger budget.")
    return best


def costs_of(prompts: Iterable[Any]) -> Costs:
    """What each kind of prompt costs, by its `Prompt.cost`."""
    kinds: dict[Any, list[Callable[[Method | None], Cost]]] = {}
    for prompt in prompts:
        kinds.setdefault((prompt.text_tokens, prompt.sizes, str(prompt.grids)), []).append(prompt.cost)
    return {alike[0]: len(alike) for alike in kinds.values()}


def _flops(cost: Cost, method: Method | None) -> int:
    if cost.total_flops is None:
        whose = method or "the tower"
        raise SettingError(f"FLOPs of {whose} are not counted: give its stages flops=, or take tokens or a retention.")
    return cost.total_flops
