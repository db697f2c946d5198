"""From a method's name and a budget to the setting of each sample: images differ in their token counts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from foveate.errors import FoveateError, SettingError
from foveate.eval.run import FULL, key_of
from foveate.eval.store import fingerprint
from foveate.methods.base import Method
from foveate.registry import method, preset
from foveate.tune import Record

__all__ = ["Choice", "Setting"]

RETENTION = 1 / 3


@dataclass(frozen=True, slots=True)
class Choice:
    """What drops in each sample of a run.

    Attributes:
        key: The name under which its answers are kept.
        values: The setting as plain values; None for the full model.
        solve: The method for a sample of so many vision tokens; None for the full model.
    """

    key: str = FULL
    values: Mapping[str, Any] | None = None
    solve: Callable[[int], Method] | None = None

    @classmethod
    def of(cls, fixed: Method | None) -> "Choice":
        """The same method for every sample; None is the full model."""
        return cls() if fixed is None else cls(key_of(fixed), fixed.to_dict(), lambda _: fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What lmms-eval's `--model_args` say of dropping.

    Attributes:
        name: A method, a preset, or the record of a tuning (a JSON file); empty is the full model.
        budget: Mean vision tokens a decoder layer, counted on each sample.
        retention: The same as a share in (0, 1]; 1/3 where neither is given.
        seed: Which draw, for methods that draw by lot.
        settings: Other settings of the method.

    Raises:
        SettingError: If they contradict each other or leave their range.
        UnknownNameError: If there is no such method or preset.
    """

    name: str = ""
    budget: float | None = None
    retention: float | None = None
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [key for key in ("budget", "retention", "seed") if getattr(self, key) is not None]
        given += ["settings"] if self.settings else []
        if not self.name and given:
            raise SettingError(f"{given[0]}= without a method: name one with method=…, such as method=v2drop.")
        if self.budget is not None and self.retention is not None:
            raise SettingError("budget= and retention= say the same thing; give one of them.")
        whole = _whole(self.name)
        if whole is not None and (self.budget is not None or self.retention is not None):
            raise SettingError(f"{self.name} brings its own budget: leave budget= and retention= out.")
        if self.name:
            kind = method(self.name) if whole is None else type(whole)
            known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
            asked = {*self.settings, *(["seed"] if self.seed is not None else [])}
            if unknown := sorted(asked - known):
                raise SettingError(f"{self.name} has no setting {unknown[0]}; it has {', '.join(sorted(known))}.")

    def choice(self, config: Any) -> Choice:
        """What it means for a model of this config."""
        if not self.name:
            return Choice()
        values = {key: value for key, value in self.to_dict().items() if value not in (None, {})}
        if (whole := _whole(self.name)) is not None:
            values["whole"] = whole.to_dict()
        return Choice(f"{self.name} {fingerprint(values)}", values, cache(lambda count: self._solved(config, count)))

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain values."""
        told = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**told, "settings": dict(self.settings)}

    def _solved(self, config: Any, vision_tokens: int) -> Method:
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in self.settings.items()}
        values |= {} if self.seed is None else {"seed": self.seed}
        try:
            if (whole := _whole(self.name)) is not None:
                return replace(whole, **values)  # type: ignore[type-var]
            kind = method(self.name)
            if values.keys() - {"seed"} and self.budget is None and self.retention is None:
                return kind(**values)
            share = RETENTION if self.budget is None and self.retention is None else self.retention
            return kind.for_budget(config, tokens=self.budget, retention=share, vision_tokens=vision_tokens, **values)
        except (TypeError, ValueError) as error:
            if isinstance(error, FoveateError):
                raise
            raise SettingError(f"settings={dict(self.settings)} has a value of the wrong kind: {error}.") from error


def _whole(name: str) -> Method | None:
    """What a name stands for as it is: a preset's setting, or that of a tuning's record; None for a method's name."""
    if name.endswith(".json"):
        return Record.load(name).method
    return preset(name) if "/" in name else None
