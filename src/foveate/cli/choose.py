"""From `--method`, `--budget`, `--retention`, `--set` and `--seed` to a method's setting."""

import dataclasses
from ast import literal_eval
from collections.abc import Sequence
from typing import Any

from foveate.cli.options import BudgetOptions
from foveate.cli.usage import UsageError
from foveate.errors import FoveateError
from foveate.eval.cells import Contender
from foveate.methods.base import Method
from foveate.registry import method, preset

__all__ = ["RETENTION", "check_names", "choose", "contender", "fitted", "is_setting", "parse_settings", "setting"]

RETENTION = 1 / 3  # a share, so that it fits any model
# Settings that a budget is solved for.
SCHEDULE = {"keep", "dominant", "contextual", "layer_list", "image_token_list"}
SCHEDULE |= {"reference", "mode", "counts", "retention", "depth"}

SWITCHES = {"true": True, "1": True, "false": False, "0": False}


def check_names(names: Sequence[str], options: BudgetOptions) -> None:
    """Refuse a command line that cannot be meant, before any model is loaded.

    Raises:
        UsageError: If flags contradict each other or no named method has a setting.
        UnknownNameError: If there is no such method or preset.
    """
    if options.budget is not None and options.retention is not None:
        raise UsageError("--budget and --retention say the same thing; give one of them.")
    for flag, value in (("--budget", options.budget), ("--retention", options.retention)):
        if value is not None and value <= 0:
            raise UsageError(f"{flag} {value:g}: a budget lies above 0.")
    if options.retention is not None and options.retention > 1:
        raise UsageError(f"--retention {options.retention:g}: a share lies in (0, 1]. For a token count use --budget.")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise UsageError(f"--method {twice[0]} is named twice.")
    kinds = [_kind(name) for name in names]
    given = options.budget is not None or options.retention is not None
    if given and names and all(is_setting(name) for name in names):
        raise UsageError(
            "A preset or a tuned record brings its own budget: leave --budget and --retention out, or name a method."
        )
    for key in parse_settings(options.settings):
        if not any(key in _settings_of(kind) for kind in kinds):
            known = sorted({known for kind in kinds for known in _settings_of(kind)})
            raise UsageError(f"--set {key}: no such setting of {', '.join(names)}. There are: {', '.join(known)}.")
    if options.seed is not None and not any("seed" in _settings_of(kind) for kind in kinds):
        raise UsageError(f"--seed: nothing is drawn by lot in {', '.join(names)}.")


def choose(name: str, config: Any, vision_tokens: int, options: BudgetOptions) -> Method:
    """The setting to run: a preset as it is, a method solved for the budget on this very input.

    With `--set` but no budget, what is not set has the method's own default. Where several methods run,
    each takes the settings that it has.

    Raises:
        SettingError: If the budget cannot be met or a setting leaves its range.
        UsageError: If a setting and a budget contradict each other or a setting has a value of the wrong kind.
    """
    try:
        return _chosen(name, config, vision_tokens, options)
    except (TypeError, ValueError) as error:
        if isinstance(error, FoveateError) or not options.settings:
            raise
        raise UsageError(f"--set {' --set '.join(options.settings)}: a value is of the wrong kind: {error}.") from error


def _chosen(name: str, config: Any, vision_tokens: int, options: BudgetOptions) -> Method:
    kind = _kind(name)
    values = fitted(kind, parse_settings(options.settings))
    if options.seed is not None:
        values["seed"] = options.seed
    values = {key: value for key, value in values.items() if key in _settings_of(kind)}
    if is_setting(name):
        return dataclasses.replace(setting(name), **values)  # type: ignore[type-var]
    if options.settings and options.budget is None and options.retention is None:
        return kind(**values)
    if solved := sorted(SCHEDULE & set(values)):
        raise UsageError(f"--set {solved[0]}=… is a schedule already: leave --budget and --retention out.")
    if options.budget is not None:
        return kind.for_budget(config, tokens=options.budget, vision_tokens=vision_tokens, **values)
    retention = RETENTION if options.retention is None else options.retention
    return kind.for_budget(config, retention=retention, vision_tokens=vision_tokens, **values)


def is_setting(name: str) -> bool:
    """Whether a name stands for a whole setting: a preset, or the record of a tuning."""
    return "/" in name or name.endswith(".json")


def setting(name: str) -> Method:
    if not name.endswith(".json"):
        return preset(name)
    from foveate.tune import Record

    return Record.load(name).method


def _kind(name: str) -> type[Method]:
    return type(setting(name)) if is_setting(name) else method(name)


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` pairs as Python values: `layers=3,17,22` a tuple, `metric=cosine` a word.

    Raises:
        UsageError: If a pair has no `=` or a key comes twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UsageError(f"--set {pair}: write KEY=VALUE, such as metric=cosine.")
        if key in values:
            raise UsageError(f"--set {key} is given twice.")
        try:
            values[key] = literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def fitted(kind: type[Method], values: dict[str, Any]) -> dict[str, Any]:
    """Values as a method's settings want them: one number a list of one, a switch true or false.

    Raises:
        UsageError: If a switch is given anything else; a word would count as true.
    """
    values = dict(values)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = values.get(field.name)
        if isinstance(field.default, tuple) and isinstance(value, int | float):
            values[field.name] = (value,)
        elif isinstance(field.default, bool) and value is not None:
            if (switch := SWITCHES.get(str(value).lower())) is None:
                raise UsageError(f"--set {field.name}={value}: write true or false.")
            values[field.name] = switch
    return values


def _settings_of(kind: type[Method]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


def contender(name: str) -> Contender:
    """A method named on the command line: `v2drop`, `v2drop:metric=l1:reverse=true`, a preset, or a tuning's record.

    Raises:
        UnknownNameError: If there is none of that name.
        UsageError: If a setting is unknown or of the wrong kind.
    """
    if is_setting(name):
        fixed = setting(name)
        return Contender(name, type(fixed), fixed=fixed)
    base, *pairs = name.split(":")
    kind = method(base)
    values = fitted(kind, parse_settings(pairs))
    known = _settings_of(kind)
    if unknown := sorted(set(values) - known):
        raise UsageError(f"--method {name}: {base} has no setting {unknown[0]}. It has: {', '.join(sorted(known))}.")
    return Contender(name, kind, values)
