"""From what lmms-eval's arguments say of dropping to each sample's setting: images differ in their token counts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from foveate._spelling import parsed, unquoted, written
from foveate.contract.budget import Budget
from foveate.contract.method import Method, meet
from foveate.contract.naming import RETENTION, draws, parse, spending, with_seed
from foveate.errors import SettingError
from foveate.eval.store import FULL, fingerprint, key_of

__all__ = ["Asked", "Choice", "Setting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for, as results say it.

    Attributes:
        method: The method as it was written; "full" is the full model.
        budget: Mean vision tokens a decoder layer; None where a share, or nothing, was asked for.
        share: The same as a share.
        seed: Which draw, where one was named.
        settings: Settings that were given beside the method.
    """

    method: str = FULL
    budget: float | None = None
    share: float | None = None
    seed: int | None = None
    settings: Mapping[str, Any] | str = field(default_factory=dict)

    def words(self) -> list[str]:
        """What tells it from others, a word each: ["v2drop", "192-tokens"]."""
        method = self.method
        if method.endswith(".json"):
            method = Path(method).stem
        words = [method]
        if isinstance(self.settings, str):
            words.append(self.settings)
        elif self.settings:
            words.append(";".join(_pair(name, value) for name, value in self.settings.items()))
        if self.budget is not None:
            words.append(f"{self.budget:g}-tokens")
        if self.share is not None:
            words.append(f"retention-{self.share:.4g}")
        if self.seed is not None:
            words.append(f"seed-{self.seed}")
        return words

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values: dict[str, Any] = {"method": self.method, "budget": self.budget, "asked_retention": self.share}
        if self.seed is not None:
            values["seed"] = self.seed
        if self.settings:
            values["settings"] = self.settings
        return values


def _pair(name: str, value: Any) -> str:
    """A setting as it is written behind a method's name: layers=3,17."""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    return f"{name}={value}"


@dataclass(frozen=True, slots=True)
class Choice:
    """What drops in each sample of a run.

    Attributes:
        key: The name under which its answers are kept.
        solve: The method for a sample of so many vision tokens; None for the full model.
        asked: What was asked for.
    """

    key: str = FULL
    solve: Callable[[int], Method] | None = None
    asked: Asked = field(default_factory=Asked)

    @classmethod
    def of(cls, fixed: Method | None) -> "Choice":
        """The same method for every sample; None is the full model."""
        if fixed is None:
            return cls()
        return cls(key_of(fixed), lambda _: fixed, Asked(method=json.dumps(fixed.to_dict())))

    def method(self, vision_tokens: int) -> Method | None:
        """What drops in a sample of so many vision tokens; None where nothing does."""
        if self.solve is None or vision_tokens == 0:
            return None
        return self.solve(vision_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What lmms-eval's `--model_args` say of dropping.

    Attributes:
        name: What drops, in the grammar of `foveate.contract.naming`; empty is the full model.
        budget: Mean vision tokens a decoder layer, counted on each sample.
        retention: The same as a share in (0, 1]; 1/3 where neither is given.
        seed: Which draw, for methods that draw at random.
        settings: Other settings of the method: a dictionary, its JSON, or `key=value;key=value`.

    Raises:
        SettingError: If they contradict each other, leave their range or are of the wrong type.
        UnknownNameError: If there is no such method or preset.
    """

    name: str = ""
    budget: float | None = None
    retention: float | None = None
    seed: int | None = None
    settings: Mapping[str, Any] | str = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_types(self)
        if not self.name:
            _refuse_without_method(self)
            return
        method = self.method()
        if self.budget is None and self.retention is None:
            return
        Budget(self.budget, self.retention)
        if not method.open:
            raise SettingError(
                f"{self.name} brings its own budget, as presets, tuned records and schedules do, or takes none: leave "
                "budget= and retention= out."
            )

    def method(self) -> Method:
        """The name with its settings."""
        settings: Any = self.settings
        if isinstance(settings, str):
            text = unquoted(settings.strip())
            settings = parsed(text) if text.startswith("{") else [pair for pair in text.split(";") if pair.strip()]
        elif not isinstance(settings, Mapping):
            raise SettingError(f'settings is a dictionary such as {{"metric": "cosine"}}; got {settings!r}.')
        method = parse(self.name, settings)
        if self.seed is None:
            return method
        if not draws(method):
            raise SettingError(f"seed={self.seed}: {self.name} has a seed, or drops nothing at random.")
        return with_seed(method, self.seed)

    def choice(self, config: Any) -> Choice:
        """What it means for a model of this config."""
        if not self.name:
            return Choice()
        method = self.method()
        values = {key: value for key, value in self.to_dict().items() if value not in (None, {})}
        if any(part.is_file or part.is_preset for part in written(self.name)):
            values["whole"] = method.to_dict()
        spent = spending(method, self.budget, self.retention)

        @cache
        def solve(count: int) -> Method:
            meet(spent, config, count)
            return spent

        share = self.retention
        if method.open and self.budget is None and share is None:
            share = RETENTION
        asked = Asked(method=self.name, budget=self.budget, share=share, seed=self.seed, settings=self.settings)
        return Choice(f"{self.name} {fingerprint(values)}", solve, asked)

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain values."""
        values = {attribute.name: getattr(self, attribute.name) for attribute in fields(self)}
        if isinstance(self.settings, Mapping):
            values["settings"] = dict(self.settings)
        return values


def _check_types(setting: Setting) -> None:
    """Refuse what an argument's text was not turned into a number of."""
    for key, kinds in (("budget", (int, float)), ("retention", (int, float)), ("seed", (int,))):
        value = getattr(setting, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            raise SettingError(f"{key} is a number; got {value!r}.")
    if not isinstance(setting.name, str):
        raise SettingError(f"method is a name such as v2drop; got {setting.name!r}.")
    if setting.budget is not None and setting.retention is not None:
        raise SettingError("budget= and retention= say the same thing; give one of them.")


def _refuse_without_method(setting: Setting) -> None:
    """Refuse whatever goes with a method."""
    needless = [key for key in ("budget", "retention", "seed") if getattr(setting, key) is not None]
    if setting.settings:
        needless.append("settings")
    if needless:
        raise SettingError(f"{needless[0]}= without a method: name one with method=…, such as method=v2drop.")
