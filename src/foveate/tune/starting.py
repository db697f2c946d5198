"""Where a search begins: at the schedule that a method has by itself."""

from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method
from foveate.methods.space import Point, Space
from foveate.tune.costs import Limit, Prices

__all__ = ["published_point", "usual_point"]


def published_point(method: Method, space: Space, prices: Prices, limit: Limit, factor: float = 1.0) -> Point | None:
    """The schedule that the method has by itself at so many times this budget; None where it cannot go so low."""
    share = factor * limit.most
    if limit.kind == "tokens":
        share /= prices.entered
    return _point_at(method, space, prices, share)


def usual_point(method: Method, space: Space, prices: Prices) -> Point:
    """The method's own schedule at the nearest budget that it can meet: its layers and shape are scaled down."""
    for share in (0.12, 0.2, 1 / 3, 0.5, 0.7):
        point = _point_at(method, space, prices, share)
        if point is not None:
            return point
    own = space.point_of(prices.plan(method), prices.entered, space.usual)
    if own is None:
        raise SettingError(f"{method.name} keeps every token by its own settings: there is no schedule to begin with.")
    return own


def _point_at(method: Method, space: Space, prices: Prices, share: float) -> Point | None:
    try:
        plan = prices.plan(_budgeted(method, share))
    except (BudgetError, SettingError):
        return None
    return space.point_of(plan, prices.entered, space.usual)


def _budgeted(method: Method, share: float) -> Method:
    """The method with a mean share; one that was given a schedule keeps it."""
    try:
        return method.with_budget(retention=share)
    except BudgetError:
        raise
    except SettingError:
        return method
