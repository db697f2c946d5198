"""Several methods as one: `VisionZip() + V2Drop()`, or "visionzip+v2drop"."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Self

from foveate._spelling import CHAIN
from foveate.contract import catalogue
from foveate.contract.budget import Budget
from foveate.contract.method import BUDGET, Method
from foveate.contract.space import Space, space_of
from foveate.contract.stages import Shape, Stage
from foveate.errors import SettingError

__all__ = ["Chain"]

SHARES = (None, 0.5, 0.35, 0.25, 0.18, 0.125)
"""What an earlier member of a chain may keep when a chain is tuned; None is what it keeps by itself."""


class _Method:
    """A method, or the dictionary of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_method)


def _method(value: Any) -> Any:
    if isinstance(value, Mapping) and "method" in value:
        return catalogue.from_dict(value)
    if not isinstance(value, Method):
        raise ValueError("a method that drops")
    return value


if TYPE_CHECKING:
    Member = Method
else:
    Member = Annotated[Any, _Method()]


class Chain(Method):
    """Methods that work one after the other, each at its own places, in whatever order you write them.

    At the same place, the second method works on the tokens that the first one kept. Each has its own notes and budget.

    Attributes:
        members: The methods.

    Raises:
        SettingError: If there are fewer than two.
    """

    name = CHAIN

    members: tuple[Member, ...] = ()

    def check_settings(self) -> None:
        if len(self.members) < 2:
            raise SettingError(f"A chain needs two methods or more; got {len(self.members)}.")

    @classmethod
    def of(cls, *methods: Method) -> Self:
        """The chain of these methods; a chain among them adds its members."""
        members: list[Method] = []
        for method in methods:
            if isinstance(method, Chain):
                members.extend(method.members)
            else:
                members.append(method)
        return cls(members=tuple(members))

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        for index, member in enumerate(self.members):
            for stage in member.stages(shape):
                stages.append(dataclasses.replace(stage, owner=(index, *stage.owner)))
        return tuple(stages)

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        """The same, the last open member spending this budget; where none is open, the last that has a budget.

        Raises:
            SettingError: If no member takes one, or not exactly one of both is given.
        """
        Budget(tokens, retention)
        takers = [index for index, member in enumerate(self.members) if member.open]
        takers = takers or [index for index, member in enumerate(self.members) if member._given(BUDGET)]
        if not takers:
            raise SettingError(f"No method of {self} takes a budget: each has a schedule of its own, or takes none.")
        members = list(self.members)
        members[takers[-1]] = members[takers[-1]].with_budget(tokens=tokens, retention=retention)
        return type(self)(members=tuple(members))

    def _check_floor(self, depth: int, entered: int) -> None:
        if any(member._given(BUDGET) for member in self.members):
            self.plan(depth, (entered,))

    @property
    def open(self) -> bool:
        return any(member.open for member in self.members)

    def space(self, depth: int) -> Space | None:
        """The members' spaces as one: the last that has one spends the budget.

        Settings are named by their member's place, "1.metric"; an earlier member's share of the tokens is one of them.
        """
        spaces = [space_of(member, depth) for member in self.members]
        places = [place for place, space in enumerate(spaces) if space is not None and space.solved_for != "threshold"]
        if not places:
            return None
        last = places[-1]
        settings: dict[str, tuple[Any, ...]] = {}
        for place in places:
            space = spaces[place]
            assert space is not None
            if place != last and self.members[place].open:
                settings[f"{place}.retention"] = SHARES
            for name, values in space.settings.items():
                settings[f"{place}.{name}"] = values
        spending = spaces[last]
        assert spending is not None
        build = partial(self._joined, spending, last, depth)
        return dataclasses.replace(spending, build=build, settings=settings, member=last)

    def _joined(
        self,
        spending: Space,
        last: int,
        depth: int,
        layers: tuple[int, ...],
        counts: Sequence[float],
        entered: int,
        settings: Mapping[str, Any],
    ) -> Self:
        """This chain with its member at place `last` built in its space, and the others' settings changed."""
        own: list[dict[str, Any]] = [{} for _ in self.members]
        for name, value in settings.items():
            number, _, setting = name.partition(".")
            own[int(number)][setting] = value
        members = []
        for place, (member, values) in enumerate(zip(self.members, own, strict=True)):
            share = values.pop("retention", None)
            if place != last:
                member = dataclasses.replace(member, **values)  # type: ignore[type-var]
            if share is not None:
                member = member.with_budget(retention=share)
            members.append(member)
        arriving = self._arriving(members[:last], depth, entered)
        counts = [min(count, arriving) for count in counts]
        members[last] = spending.build(layers, counts, arriving, own[last])
        return type(self)(members=tuple(members))

    def _arriving(self, earlier: Sequence[Method], depth: int, entered: int) -> int:
        """Tokens that earlier members leave of an image that enters with so many."""
        left = entered
        for member in earlier:
            plan = member.plan(depth, [left])
            if plan is not None:
                left = plan[0]
        return left

    def __str__(self) -> str:
        return "+".join(map(str, self.members))


Method._chain_of = Chain.of
