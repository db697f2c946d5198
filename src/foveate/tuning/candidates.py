"""The small grid of settings that tuning tries.

It has the method as published, with earlier first cuts, and with each value of its first two searched settings. A
method lists these values in `searched`; the first value is the default.
"""

import itertools
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import Any

from foveate.contract.cuts import Cuts
from foveate.contract.follow import cut_layers
from foveate.contract.method import Chain, Method
from foveate.contract.stages import Shape

FIRST_CUTS = 3
"""How many of the earliest layers are tried for the first cut."""
ANY_BUDGET = 1 / 3
"""A budget to get a method's layers: some methods use other layers without one."""


def grid(method: Method, depth: int, given: Collection[str] = ()) -> list[Method]:
    """Return the settings to try, without a budget. The method itself is the first.

    In a chain, only the member that spends the budget varies.

    Args:
        method: A method that takes a budget.
        depth: Number of decoder layers.
        given: Settings that stay; in a chain with the member's index, "1.metric". Settings that differ from their
            defaults stay too.
    """
    if isinstance(method, Chain):
        place = method.spender
        before, behind = method.members[:place], method.members[place + 1 :]
        own = [name.removeprefix(f"{place}.") for name in given]  # other members' names match no setting
        return [Chain.of(*before, member, *behind) for member in grid(method.members[place], depth, own)]
    usual = {field.name for field in fields(method) if getattr(method, field.name) == field.default}  # type: ignore[arg-type]
    free = usual - set(given)
    searched = {name: values for name, values in getattr(method, "searched", {}).items() if name in free}
    names = list(searched)[:2]
    tried = []
    for values in itertools.product(*(searched[name] for name in names)):
        for cuts in _first_cuts(method, depth, free):
            tried.append(replace(method, **dict(zip(names, values, strict=True)), **cuts))  # type: ignore[type-var]
    return list(dict.fromkeys(tried))


def _first_cuts(method: Method, depth: int, free: Collection[str]) -> list[Mapping[str, Any]]:
    """Return changes of the first cut: {} for none, then one per early layer. Only {} if the layers are given.

    For cuts at layers 5 and 9, and FIRST_CUTS = 3: layers 1, 2 and 3 instead of 5.
    """
    if hasattr(method, "at_scale"):  # its cost is only known after running it, so only one is tried
        return [{}]
    if not isinstance(method, Cuts) or method.layers_setting == "layer":
        cuts = "layer" in free and cut_layers(method.stages(Shape(depth)))
        return [{}, *({"layer": layer} for layer in range(1, 1 + FIRST_CUTS) if cuts)]
    if method.layers_setting not in free:
        return [{}]
    own, *later = method.with_budget(retention=ANY_BUDGET).cuts(depth)
    earliest = max(1, method.earliest)
    places: list[Mapping[str, Any]] = [{}]
    for first in range(earliest, min([earliest + FIRST_CUTS, *later])):
        if first != own:
            places.append({method.layers_setting: tuple(layer - method.behind for layer in (first, *later))})
    return places
