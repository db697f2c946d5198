"""Several methods as one: `VisionZip() + V2Drop()`, or "visionzip+v2drop"."""

import dataclasses
from typing import Self

from foveate._spelling import CHAIN
from foveate.errors import SettingError
from foveate.methods.base import Method
from foveate.methods.schedule import Budget
from foveate.methods.settings import MethodSetting
from foveate.methods.stages import Shape, Stage

__all__ = ["Chain"]


class Chain(Method):
    """Methods that work one after the other, each at its own places, in whatever order you write them.

    At the same place, the second method works on the tokens that the first one kept. Each has its own notes and budget.

    Attributes:
        members: The methods.

    Raises:
        SettingError: If there are fewer than two.
    """

    name = CHAIN

    members: tuple[MethodSetting, ...] = ()

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

    def check(self, depth: int) -> None:
        for member in self.members:
            member.check(depth)
        super().check(depth)

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        """The same, the last member that takes a budget spending this one; the others keep theirs.

        Raises:
            SettingError: If no member takes one, or not exactly one of both is given.
        """
        Budget(tokens, retention)
        reasons = []
        for index in reversed(range(len(self.members))):
            try:
                member = self.members[index].with_budget(tokens=tokens, retention=retention)
            except SettingError as error:
                reasons.append(str(error))
                continue
            return type(self)(members=(*self.members[:index], member, *self.members[index + 1 :]))
        raise SettingError(f"No method of this chain takes a budget: {' '.join(reversed(reasons))}")

    def __str__(self) -> str:
        return " + ".join(map(str, self.members))


Method._chain_of = Chain.of

METHOD = Chain
