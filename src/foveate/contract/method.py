"""A method: settings, and the stages they make. `Chain` joins several: `VisionZip() + V2Drop()`.

Nothing here depends on a model, a batch, an attention mask or a KV cache.
"""

import dataclasses
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Self, dataclass_transform, get_type_hints

from annotated_types import Ge, Lt
from torch import Tensor

from foveate.contract import follow
from foveate.contract.budget import MOST_TOKENS, Budget, decoder_depth
from foveate.contract.settings import AtLeastOne
from foveate.contract.stages import Shape, Stage
from foveate.core.author import Author
from foveate.core.fields import check, check_call
from foveate.core.grid import Grid
from foveate.core.signals import OwnSignal
from foveate.errors import SettingError
from foveate.plain.spelling import CHAIN, no_setting
from foveate.plain.upstream import brief

BUDGET = ("tokens", "retention")
ANY_COUNT = 2**20  # stands in for an unknown token count; the budget's floor is then a share


@dataclass(frozen=True, slots=True, repr=False)
class Preset:
    """A named setting of a method.

    Attributes:
        name: `method/model/budget`.
        method: The configured method.
        depth: Decoder layers of the model it was made for.
        vision_tokens: Vision tokens of the model's usual input; None if the setting fits any count.
        source: Where the numbers come from.
    """

    name: str
    method: "Method"
    depth: int
    vision_tokens: int | None
    source: str

    def __repr__(self) -> str:
        return f"Preset({self.name!r})"


@dataclass(slots=True, eq=False)
class LastFrame:
    """The last frame seen of a video that arrives in parts: (tokens, width) float32; None before the first frame."""

    features: Tensor | None = None


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Method(ABC):
    """A way to drop vision tokens: settings, and the stages that they make.

    A subclass lists its settings with their types (`foveate.contract.settings`). It becomes a frozen dataclass without
    a decorator, and every value is checked when an instance is made. Rules between settings go into `check_settings`.

    Subclasses in `foveate/methods/` need no registration; others call `foveate.register_method` or declare an entry
    point in the group `foveate.methods`.

    Raises:
        SettingError: If a setting is of the wrong type, is out of range or contradicts another.
    """

    name: ClassVar[str]
    """The name users type."""
    schedule: ClassVar[tuple[str, ...]] = ()
    """Settings that give how many tokens stay, each None by default. They exclude a budget."""
    only_one: ClassVar[bool] = False
    """Whether at most one of the settings in `schedule` may be given."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__dataclass_params__" not in cls.__dict__:
            # dataclasses would ignore a new default without a type, such as `keep = 0.3`: repeat the type of its base.
            typed = get_annotations(cls)
            for name in getattr(cls, "__dataclass_fields__", {}).keys() & vars(cls).keys() - typed.keys():
                if not hasattr(vars(cls)[name], "__get__"):  # not a property
                    typed[name] = get_type_hints(cls.__mro__[1], include_extras=True)[name]
            cls.__annotations__ = typed
            dataclass(frozen=True, kw_only=True)(cls)
            # Drop the dataclass's versions of both, so that an author may also write @dataclass(frozen=True).
            del cls.__setattr__, cls.__delattr__

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(
            f"The setting {name} cannot be changed. Make another method with dataclasses.replace()."
        )

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"The setting {name} cannot be deleted.")

    def __post_init__(self) -> None:
        check(self)
        schedule = self._not_none(self.schedule)
        if self.budget and schedule:
            raise SettingError(
                f"{type(self).__name__}: give either {' and '.join(schedule)} or a budget (retention=, tokens=), not "
                f"both; got {_join(schedule)}."
            )
        if self.only_one and len(schedule) > 1:
            raise SettingError(f"{type(self).__name__}: give one of {' and '.join(schedule)}; got {_join(schedule)}.")
        self.check_settings()

    def check_settings(self) -> None:  # noqa: B027 - most settings do not depend on one another
        """Refuse settings that contradict each other.

        Raises:
            SettingError: If two settings contradict each other.
        """

    @classmethod
    def _fields(cls) -> "dict[str, dataclasses.Field[Any]]":
        return {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields()}

    def _not_none(self, names: Sequence[str]) -> dict[str, Any]:
        """Return these settings without those that are None."""
        values = self._values()
        return {name: values[name] for name in names if values.get(name) is not None}

    def __str__(self) -> str:
        """Format as users type it, with the settings that differ from their defaults: `v2drop:layers=3,17,22`."""
        fields = self._fields()
        settings = {name: value for name, value in self._values().items() if value != fields[name].default}
        written = ";".join(f"{name}={_as_written(value)}" for name, value in settings.items())
        if written:
            return f"{self.name}:{written}"
        return self.name

    @abstractmethod
    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the stages of the method on a model of this shape."""

    def placed(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the stages in the order in which tokens meet them. Those of your own method name it if they fail.

        Raises:
            MethodError: If `stages` fails, or returns something else, in a method that is not foveate's own.
        """
        if type(self).__module__.startswith("foveate."):
            return follow.in_order(self.stages(shape))
        author = Author(getattr(self, "name", type(self).__name__))
        try:
            stages = self.stages(shape)
        except Exception as error:
            if isinstance(error, SettingError) and str(error).startswith(type(self).__name__):  # it names the method
                raise
            raise author.fault("stages", error) from error
        if not isinstance(stages, tuple | list) or not all(isinstance(stage, Stage) for stage in stages):
            raise author.wrong("stages", "a tuple of stages", stages)
        named = []
        for stage in stages:
            reads = [
                dataclasses.replace(one, author=author) if isinstance(one, OwnSignal) else one for one in stage.reads
            ]
            named.append(dataclasses.replace(stage, author=author, reads=tuple(reads)))
        return follow.in_order(named)

    def around(self, stages: tuple[Stage, ...], shape: Shape) -> tuple[Stage, ...]:
        """Change the stages of a chain that this method is a member of. Most methods return them unchanged.

        Raises:
            SettingError: If the method cannot be combined with one of them.
        """
        return stages

    def goes_on(self, last: LastFrame) -> Self:
        """Return this method for a video that arrives in parts. Its first frame is compared with the last one seen.

        Args:
            last: Holds the last frame seen; the method writes the last frame of this part to it. Most methods ignore
                it.
        """
        return self

    def caution(self, retention: float) -> str | None:
        """Return a note for users if the method is weak at a budget of this share of the vision tokens, else None."""
        return None

    @check_call("A plan")
    def plan(
        self,
        depth: AtLeastOne,
        sizes: Sequence[int],
        grids: Sequence[Sequence[Grid]] | None = None,
        videos: Sequence[bool] | None = None,
    ) -> tuple[int, ...] | None:
        """Return the vision tokens that each of `depth` decoder layers processes for one sample.

        None if the counts depend on what the images show or the text asks. See `foveate.contract.follow.layer_plan`
        for the arguments.

        Raises:
            BudgetError: If the budget cannot be met; the message names the floor.
            SettingError: If a cut lies outside the decoder.
        """
        stages = self.placed(Shape(depth))
        follow.refuse_shallow(type(self).__name__, stages, depth)
        return follow.layer_plan(stages, depth, sizes, grids, videos)

    @classmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        **values: Any,
    ) -> Self:
        """Build the method with a budget, which its stages solve for every image. Check that `model` can meet it.

        Whether a number of tokens can be met depends on the image, so it is only checked if `vision_tokens` is given.

        Args:
            model: A model or its config; its depth is read.
            tokens: Mean vision tokens that a decoder layer processes.
            retention: That mean as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count.
            values: Other settings of the method.

        Raises:
            BudgetError: If the budget lies below what the method can do; the message names the floor.
            SettingError: If the budget is contradictory, or the method takes none.
        """
        cls._refuse_unknown({"retention": retention, **values})
        method = cls(**values).with_budget(tokens=tokens, retention=retention)
        meet(method, model, vision_tokens)
        return method

    def check_floor(self, depth: int, entered: int) -> None:
        """Refuse a budget that an image of `entered` vision tokens cannot meet on a decoder of `depth` layers.

        Raises:
            BudgetError: If the budget cannot be met; the message names the floor.
        """
        if self._not_none(BUDGET):
            self.plan(depth, (entered,))

    @property
    def budget(self) -> Budget | None:
        """The budget given as `retention` or `tokens`; None if the method's own settings decide how many stay."""
        budget = self._not_none(BUDGET)
        if not budget:
            return None
        return Budget(**budget)

    @property
    def open(self) -> bool:
        """Whether the method takes a budget but has neither a budget nor a schedule."""
        return "retention" in self._fields() and not self._not_none((*self.schedule, *BUDGET))

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        """Return this method with a budget, replacing any that it has. Its stages solve it for every image.

        Raises:
            SettingError: If the method takes no budget or has a schedule, or if not exactly one argument is given.
        """
        Budget(tokens, retention)
        fields = self._fields()
        if "retention" not in fields:
            raise SettingError(
                f"{type(self).__name__} takes no budget. Give its settings instead; in a method of your own, derive "
                "it from Cuts, Once or Frames, which take one."
            )
        if tokens is not None and "tokens" not in fields:
            raise SettingError(
                f"{type(self).__name__} takes its budget as retention=, not as tokens={tokens}. Divide it by the "
                "number of vision tokens."
            )
        if schedule := self._not_none(self.schedule):
            raise SettingError(
                f"{type(self).__name__} has a schedule of its own, {_join(schedule)}. Give either the schedule or a "
                "budget."
            )
        budget = {"retention": retention, "tokens": tokens}
        return dataclasses.replace(self, **{name: budget[name] for name in BUDGET if name in fields})  # type: ignore[type-var]

    def __add__(self, other: "Method") -> "Method":
        """Return a `Chain` of both methods. Each runs its own stages."""
        if not isinstance(other, Method):
            return NotImplemented
        return Chain.of(self, other)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values: `{"method": name, …}`."""
        values = {name: _as_plain(value) for name, value in self._values().items()}
        return {"method": self.name, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the method from the result of `to_dict`.

        Raises:
            SettingError: If a field is unknown or the dictionary belongs to another method.
        """
        if not isinstance(values, Mapping):
            raise SettingError(f"The settings of {cls.name} must be a dictionary; got {brief(values)}.")
        values = dict(values)
        if (name := values.pop("method", cls.name)) != cls.name:
            raise SettingError(f"These settings belong to {brief(name)}, not to {cls.name!r}.")
        cls._refuse_unknown(values)
        return cls(**values)

    @classmethod
    def _refuse_unknown(cls, names: Iterable[str]) -> None:
        """Refuse names that are not settings of the method.

        Raises:
            SettingError: If the method has no such setting.
        """
        if unknown := sorted(set(names) - set(cls._fields()), key=str):
            raise no_setting(cls.name, ", ".join(map(str, unknown)), cls._fields())


@check_call("A budget")
def meet(method: Method, model: Any, vision_tokens: Annotated[int, Ge(1), Lt(MOST_TOKENS)] | None = None) -> None:
    """Refuse a budget that this model cannot meet on an image of `vision_tokens` tokens; None: an image of any size.

    Raises:
        BudgetError: If the budget cannot be met; the message names the floor.
        SettingError: If the budget exceeds `vision_tokens`, or `vision_tokens` is not a positive whole number.
    """
    asked = method._not_none(("tokens",)).get("tokens", 0)
    if vision_tokens is not None and asked > vision_tokens:
        raise SettingError(f"tokens must be between 1 and {vision_tokens} for this input; got {asked:.6g}.")
    if vision_tokens is not None or not asked:
        method.check_floor(decoder_depth(model), vision_tokens or ANY_COUNT)


# -- several methods as one -----------------------------------------------------------------------------------------


class Chain(Method):
    """Several methods as one. Each runs its stages at their places in the model, whatever order you write them in.

    At a place that two methods share, the second works on the tokens that the first kept. Each has its own notes and
    budget. Finally each member may change all stages (`Method.around`), in the order of the members.

    Attributes:
        members: The methods.

    Raises:
        SettingError: If there are fewer than two.
    """

    name = CHAIN

    members: tuple[Method, ...] = ()

    def check_settings(self) -> None:
        if len(self.members) < 2:
            raise SettingError(f"A chain needs two methods or more; got {len(self.members)}.")

    @classmethod
    def of(cls, *methods: Method) -> Self:
        """Build the chain of these methods. The members of a chain among them are added one by one."""
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
            for stage in member.placed(shape):
                stages.append(dataclasses.replace(stage, owner=(index, *stage.owner)))
        changed = tuple(stages)
        for member in self.members:
            changed = member.around(changed, shape)
        return changed

    @property
    def spender(self) -> int:
        """Index of the member that a budget goes to: the last open one, or else the last that has a budget.

        Raises:
            SettingError: If no member takes a budget.
        """
        takers = [index for index, member in enumerate(self.members) if member.open]
        takers = takers or [index for index, member in enumerate(self.members) if member._not_none(BUDGET)]
        if not takers:
            raise SettingError(f"No method of {self} takes a budget: each has a schedule of its own, or takes none.")
        return takers[-1]

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        """Return this chain with the budget given to its `spender`.

        Raises:
            SettingError: If no member takes a budget, or if not exactly one argument is given.
        """
        Budget(tokens, retention)
        members = list(self.members)
        members[self.spender] = members[self.spender].with_budget(tokens=tokens, retention=retention)
        return type(self)(members=tuple(members))

    def goes_on(self, last: LastFrame) -> Self:
        members = tuple(member.goes_on(last) for member in self.members)
        if all(map(operator.is_, members, self.members)):
            return self
        return dataclasses.replace(self, members=members)

    def check_floor(self, depth: int, entered: int) -> None:
        if any(member._not_none(BUDGET) for member in self.members):
            self.plan(depth, (entered,))

    @property
    def open(self) -> bool:
        return any(member.open for member in self.members)

    def __str__(self) -> str:
        return "+".join(map(str, self.members))


def _join(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _as_written(value: Any) -> str:
    """Format a setting's value as users type it: `3,17,22`, `(30,5),(22,4)`, and floats with six digits."""
    if isinstance(value, tuple):
        if any(isinstance(part, tuple) for part in value):
            return str(value)[1:-1].replace(" ", "")
        return ",".join(map(_as_written, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _as_plain(value: Any) -> Any:
    """Convert a setting for `to_dict`: methods become dictionaries, anything else is unchanged."""
    if isinstance(value, Method):
        return value.to_dict()
    if isinstance(value, tuple) and any(isinstance(part, Method) for part in value):
        return [_as_plain(part) for part in value]
    return value
