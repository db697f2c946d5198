"""Where a search begins: at the schedule that a method has by itself."""

from collections.abc import Collection

from foveate.contract.chain import Chain
from foveate.contract.follow import cut_layers
from foveate.contract.method import Method
from foveate.contract.space import Point, Space
from foveate.contract.stages import Shape
from foveate.errors import BudgetError, SettingError
from foveate.tune.costs import Limit, Prices

__all__ = ["budgeted", "left_to_search", "published_point", "usual_point"]

LISTS = ("layers", "layer_list")
"""Settings that list the layers which are cut."""


def left_to_search(space: Space, method: Method, given: Collection[str]) -> Space:
    """The space of a method without the settings that its user has given; of a chain, such as "1.metric"."""
    own, place = _spending(method, space), "" if space.member is None else f"{space.member}."
    fixed = [getattr(own, name) for name in LISTS if place + name in given and space.most_cuts]
    return space.without(given, *fixed)


def published_point(method: Method, space: Space, prices: Prices, limit: Limit) -> Point | None:
    """The schedule that the method has by itself at this budget; None where it cannot go so low."""
    share = limit.value
    if limit.kind == "tokens":
        share /= prices.entered
    return _point_at(method, space, prices, share)


def usual_point(method: Method, space: Space, prices: Prices) -> Point:
    """The method's own schedule at the nearest budget that it can meet: its layers and shape are scaled down.

    Of a chain, that of the member that spends the budget, as if the others left it every token.
    """
    own = _spending(method, space)
    for share in (0.12, 0.2, 1 / 3, 0.5, 0.7):
        point = _point_at(own, space, prices, share)
        if point is not None:
            return point
    point = space.point_of(prices.plan(own), prices.entered, space.usual)
    if point is None:
        raise SettingError(f"{own.name} keeps every token by its own settings: there is no schedule to begin with.")
    return point


def _point_at(method: Method, space: Space, prices: Prices, share: float) -> Point | None:
    try:
        spending = budgeted(method, share)
        plan = prices.plan(spending)
    except SettingError:
        return None
    cuts = cut_layers(_spending(spending, space).stages(Shape(prices.depth)))
    return space.point_of(plan, prices.entered, space.usual, cuts)


def _spending(method: Method, space: Space) -> Method:
    """The method, or the member of a chain, whose cuts the space has."""
    if space.member is None or not isinstance(method, Chain):
        return method
    member: Method = method.members[space.member]
    return member


def budgeted(method: Method, share: float) -> Method:
    """The method with a mean share; one that was given a schedule keeps it."""
    try:
        return method.with_budget(retention=share)
    except BudgetError:
        raise
    except SettingError:
        return method
