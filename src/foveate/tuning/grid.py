"""The small grid of a method: as published, with an earlier first cut, and with each value of its first two settings.

A method says in `searched` which settings have values to try; the first of these is the usual one.
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
"""The earliest layers that are tried for the first cut."""
ANY_BUDGET = 1 / 3
"""Some methods have other layers with a budget than without."""


def grid(method: Method, depth: int, given: Collection[str] = ()) -> list[Method]:
    """Settings to try in a decoder of `depth` layers, without a budget; the method itself is the first.

    Of a chain, those of the member that spends the budget: the others stay as they are.

    Args:
        method: One that takes a budget.
        depth: Decoder layers.
        given: Settings that stay; of a chain with the place of their member, "1.metric". Those that differ from the
            usual ones stay too.
    """
    if isinstance(method, Chain):
        place = method.spender
        before, behind = method.members[:place], method.members[place + 1 :]
        own = [name.removeprefix(f"{place}.") for name in given if name.startswith(f"{place}.")]
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
    """The setting of where it cuts first, as it is, then with each early layer; as it is alone where that is given."""
    if hasattr(method, "at_scale"):  # each would have to be run to know what it costs
        return [{}]
    if not isinstance(method, Cuts) or method.layers_setting == "layer":
        cuts = "layer" in free and cut_layers(method.stages(Shape(depth)))
        return [{}, *({"layer": layer} for layer in range(1, 1 + FIRST_CUTS) if cuts)]
    if method.layers_setting not in free:
        return [{}]
    own, *later = method.with_budget(retention=ANY_BUDGET).cuts(depth)
    earliest = max(1, getattr(method, "first_layer", 1))
    places: list[Mapping[str, Any]] = [{}]
    for first in range(earliest, min([earliest + FIRST_CUTS, *later])):
        if first != own:
            places.append({method.layers_setting: tuple(layer - method.behind for layer in (first, *later))})
    return places
