"""A method: settings, and the stages they make. Nothing here knows a model, a batch, a mask or a cache."""

import dataclasses
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, dataclass_transform

from foveate._spelling import no_setting
from foveate._upstream import brief
from foveate.core.grid import Grid
from foveate.errors import SettingError
from foveate.methods import follow
from foveate.methods.checking import check
from foveate.methods.schedule import Budget, budget_of, decoder_depth
from foveate.methods.space import Space
from foveate.methods.stages import Shape, Stage

__all__ = ["Method", "Preset"]

BUDGET = ("tokens", "retention")


@dataclass(frozen=True, slots=True, repr=False)
class Preset:
    """A named setting of a method.

    Attributes:
        name: `method/model/budget`.
        method: The setting itself.
        depth: Decoder layers of the model it was made for.
        vision_tokens: Vision tokens of the model's usual input; None where the setting fits any count.
        source: Where the numbers come from.
    """

    name: str
    method: "Method"
    depth: int
    vision_tokens: int | None
    source: str

    def __repr__(self) -> str:
        return f"Preset({self.name!r})"


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Method(ABC):
    """A way to drop vision tokens: settings, and the stages that they make.

    A subclass lists its settings with their types (`foveate.methods.settings`). It becomes a frozen dataclass without a
    decorator, and every value is checked when an instance is made. Rules between settings go into `check_settings`.

    Subclasses in `foveate/methods/` need no registration; others call `foveate.register_method` or declare an entry
    point in the group `foveate.methods`.

    Raises:
        SettingError: If a setting is of the wrong type, leaves its range or contradicts another.
    """

    name: ClassVar[str]
    """The name users type."""
    presets: ClassVar[tuple[Preset, ...]] = ()
    """Published and derived settings."""
    schedule: ClassVar[tuple[str, ...]] = ()
    """Settings that say how many tokens stay, so that a budget cannot be given beside them."""
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Settings that `foveate tune` may change, with their values, the usual one first; the first two make its grid."""
    # `Chain.of`. A chain is a method and so imports this module; foveate.methods.chain sets it here.
    _chain_of: ClassVar[Callable[..., "Method"]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__dataclass_params__" not in cls.__dict__:
            dataclass(frozen=True, kw_only=True)(cls)
            # `Method` has these two. Without those of the dataclass an author may write @dataclass(frozen=True) too.
            del cls.__setattr__, cls.__delattr__

    def __setattr__(self, name: str, value: Any) -> None:
        raise dataclasses.FrozenInstanceError(f"a setting cannot be changed: {name}; make another with replace()")

    def __delattr__(self, name: str) -> None:
        raise dataclasses.FrozenInstanceError(f"a setting cannot be deleted: {name}")

    def __post_init__(self) -> None:
        for name, value in check(type(self).__name__, type(self), self._values()).items():
            object.__setattr__(self, name, value)
        self.check_settings()

    def check_settings(self) -> None:  # noqa: B027 - most settings do not depend on one another
        """Refuse settings that contradict each other, and fill in those that depend on others (`self._set`).

        Raises:
            SettingError: If settings contradict each other.
        """

    @classmethod
    def _fields(cls) -> "dict[str, dataclasses.Field[Any]]":
        return {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields()}

    def _set(self, **values: Any) -> None:
        """Fill in settings from `check_settings`, past the guard of a frozen class."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @abstractmethod
    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        """The steps of the method on a model of this shape."""

    def plan(
        self,
        depth: int,
        sizes: Sequence[int],
        grids: Sequence[Sequence[Grid]] | None = None,
        videos: Sequence[bool] | None = None,
    ) -> tuple[int, ...] | None:
        """Vision tokens that each of `depth` decoder layers processes, for a sample with images of these sizes.

        None where that depends on what the images show or the text asks. See `foveate.methods.follow.layer_plan`.
        """
        return follow.layer_plan(follow.in_order(self.stages(Shape(depth))), depth, sizes, grids, videos)

    def check(self, depth: int) -> None:
        """Refuse a decoder of `depth` layers that is too shallow for the setting.

        Raises:
            SettingError: If a cut lies outside the decoder.
        """
        cuts = follow.cut_layers(self.stages(Shape(depth)))
        late = [layer for layer in cuts if layer >= depth]
        if late:
            raise SettingError(
                f"{type(self).__name__} cuts before layers {late}, but the decoder has layers 0 to {depth - 1}. "
                f"Give earlier layers, or a budget (retention=…), which fits any depth."
            )

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
        """The setting whose cost meets a budget on `model`.

        Args:
            model: A model or its config; its depth is read.
            tokens: Mean vision tokens that a decoder layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count; families with a fixed count know their own.
            values: Other settings of the method.

        Raises:
            BudgetError: If the budget lies below what the method can do; the message names the floor.
            SettingError: If the budget is contradictory.
        """
        share, entered = budget_of(model, tokens, retention, vision_tokens)
        cls.check_beside_budget(values)
        return cls.solved(share, entered, decoder_depth(model), **values)

    @classmethod
    def check_beside_budget(cls, values: Mapping[str, Any]) -> None:
        """Refuse settings beside which no budget can be solved: unknown ones, those it decides, values that do not fit.

        Raises:
            SettingError: If there is one.
        """
        fields, taken = cls._fields(), inspect.signature(cls.solved).parameters
        for name in values:
            if name not in fields and name not in taken:
                raise no_setting(cls.name, name, fields)
            if name in (*cls.schedule, *BUDGET) and name not in taken:
                raise SettingError(f"A budget decides {name} of {cls.__name__}. Give either the budget or {name}=….")
        left_out = {name for name, value in values.items() if value is None and name in taken}
        own = {name: value for name, value in values.items() if name in fields and name not in left_out}
        check(cls.__name__, cls, own, partly=True)

    @classmethod
    def solved(cls, share: float, entered: int | None, depth: int, /, **values: Any) -> Self:
        """The setting for a mean share of the vision tokens, in a decoder of `depth` layers: what `for_budget` returns.

        Args:
            share: The share of the vision tokens that a decoder layer processes on average, in (0, 1].
            entered: How many vision tokens an image has; None where that is not known.
            depth: Decoder layers.
            values: Other settings of the method.

        Raises:
            BudgetError: If the budget lies below what the method can do; the message names the floor.
            SettingError: If the method takes no budget, or settings contradict it.
        """
        raise SettingError(f"{cls.__name__} takes no budget. Give its settings instead.")

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        """The same method with a budget, which its stages solve for every image they see.

        Settings that the method has filled in by itself are solved again.

        Raises:
            SettingError: If the method takes no budget, was given a schedule, or not exactly one of both is given.
        """
        Budget(tokens, retention)
        fields = self._fields()
        if "retention" not in fields:
            raise SettingError(f"{type(self).__name__} takes no budget. Give its settings instead.")
        # The same method as its name alone makes it: what it has filled in by itself has these values.
        required = {name: getattr(self, name) for name, field in fields.items() if _is_required(field)}
        usual = type(self)(**required)
        changes: dict[str, Any] = {}
        for name, field in fields.items():
            value, usual_value = getattr(self, name), getattr(usual, name)
            if field.default is None and value == usual_value:
                changes[name] = None  # filled in; the budget fills it in again
            elif name in self.schedule and value not in (field.default, usual_value):
                raise SettingError(
                    f"{type(self).__name__} has a schedule of its own, {name}={value}. Give either the schedule or a "
                    "budget."
                )
        if "tokens" in fields:
            changes["tokens"] = tokens
        elif tokens is not None:
            raise SettingError(
                f"{type(self).__name__} takes its budget as retention=, not as tokens={tokens}. Divide it by the "
                "number of vision tokens."
            )
        changes["retention"] = retention
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def space(self, depth: int) -> Space | None:
        """What `foveate tune` may change of this setting, in a decoder of `depth` layers; None where nothing can be.

        By default: the settings in `searched`, the place of a single cut, and the budget. A setting that differs from
        the method's usual one was chosen by somebody, and stays.
        """
        if "retention" not in self._fields():
            return None
        settings = self.free_settings()
        cuts = follow.cut_layers(self.stages(Shape(depth)))
        if "layer" in self._fields() and cuts and self._is_usual("layer"):
            settings["layer"] = (cuts[0], *(layer for layer in range(1, depth // 2) if layer != cuts[0]))
        return Space(build=self._with_mean, depth=depth, most_cuts=0, counts_entry=True, whole=False, settings=settings)

    def takes_budget(self) -> bool:
        """Whether a budget can be given, and nobody has: no schedule, and no budget."""
        if not all(self._is_usual(name) for name in BUDGET if name in self._fields()):
            return False
        try:
            self.with_budget(retention=1.0)
        except SettingError:
            return False
        return True

    def free_settings(self) -> dict[str, tuple[Any, ...]]:
        """The settings in `searched` that nobody has chosen."""
        return {name: values for name, values in self.searched.items() if self._is_usual(name)}

    def _is_usual(self, name: str) -> bool:
        return bool(getattr(self, name) == self._fields()[name].default)

    def _with_mean(
        self, layers: tuple[int, ...], counts: Sequence[float], entered: int, settings: Mapping[str, Any]
    ) -> "Method":
        """This setting with a mean of `counts[0]` of `entered` tokens."""
        changed = dataclasses.replace(self, **settings)  # type: ignore[type-var]
        return changed.with_budget(retention=min(1.0, counts[0] / entered))

    def __add__(self, other: "Method") -> "Method":
        """A chain of both: each works at its own places (see `foveate.methods.chain`)."""
        if not isinstance(other, Method):
            return NotImplemented
        return Method._chain_of(self, other)

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain values: `{"method": name, …}`."""
        values = {name: _as_plain(value) for name, value in self._values().items()}
        return {"method": self.name, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The setting that `to_dict` gave.

        Raises:
            SettingError: If a field is unknown or the dictionary belongs to another method.
        """
        if not isinstance(values, Mapping):
            raise SettingError(f"The settings of {cls.name} must be a dictionary; got {brief(values)}.")
        values = dict(values)
        if (name := values.pop("method", cls.name)) != cls.name:
            raise SettingError(f"These settings belong to {brief(name)}, not to {cls.name!r}.")
        settings = cls._fields()
        if unknown := sorted(set(values) - set(settings), key=str):
            raise no_setting(cls.name, ", ".join(map(str, unknown)), settings)
        return cls(**values)

    def to_json(self) -> str:
        """The setting as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The setting that `to_json` gave.

        Raises:
            SettingError: If the text is no JSON, or holds no setting of this method.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SettingError(f"The settings of {cls.name} are not valid JSON: {error}.") from error
        return cls.from_dict(values)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _as_plain(value: Any) -> Any:
    """A setting for `to_dict`: a method as its dictionary, anything else as it is."""
    if isinstance(value, Method):
        return value.to_dict()
    if isinstance(value, tuple) and any(isinstance(part, Method) for part in value):
        return [_as_plain(part) for part in value]
    return value
