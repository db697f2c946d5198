"""From `--method`, `--budget`, `--retention`, `--set` and `--seed` to what is to be run."""

from collections.abc import Sequence

from foveate.cli.options import BudgetOptions
from foveate.cli.usage import UsageError
from foveate.errors import SettingError
from foveate.methods.grammar import read
from foveate.methods.named import Named

__all__ = ["named"]


def named(names: Sequence[str], options: BudgetOptions) -> dict[str, Named]:
    """What each name of a command line says, with its `--set` and `--seed`; before any model is loaded.

    Where several methods run, each takes the settings that it has.

    Raises:
        FoveateError: If flags contradict each other, a setting is unknown or of the wrong type, or there is no such
            method, preset or file.
    """
    _check_budget(options)
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise UsageError(f"--method {twice[0]} is named twice.")
    found = {name: read(name) for name in names}
    _check_settings(found, options)
    found = {name: _with_flags(one, options) for name, one in found.items()}
    given = options.budget is not None or options.retention is not None
    for one in found.values():
        one.check()
        if not (given or one.bare):
            one.method()
    if given and found and all(one.settled for one in found.values()):
        raise UsageError(
            f"{', '.join(found)} brings its own budget, as presets, tuned records and schedules do, or takes none: "
            "leave --budget and --retention out, or name a method."
        )
    return found


def _check_budget(options: BudgetOptions) -> None:
    if options.budget is not None and options.retention is not None:
        raise UsageError("--budget and --retention say the same thing; give one of them.")
    for flag, value in (("--budget", options.budget), ("--retention", options.retention)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{flag} {value:g}: a budget lies above 0.")
    if options.retention is not None and options.retention > 1:
        raise UsageError(f"--retention {options.retention:g}: a share lies in (0, 1]. For a token count use --budget.")


def _check_settings(found: dict[str, Named], options: BudgetOptions) -> None:
    """Refuse settings that no method has, and a schedule beside a budget."""
    members = [member for one in found.values() for member in one.members]
    schedules = {name for member in members for name in (*member.kind.schedule, "tokens", "retention")}
    given = options.budget is not None or options.retention is not None
    for key in (pair.partition("=")[0].strip() for pair in options.settings):
        if key and not any(one.has(key) for one in found.values()):
            known = sorted({name for one in found.values() for name in one.settings()})
            raise UsageError(f"--set {key}: no such setting of {', '.join(found)}. There are: {', '.join(known)}.")
        if given and key in schedules:
            raise UsageError(f"--set {key}=… is a schedule already: leave --budget and --retention out.")
    if options.seed is not None and not any(one.has("seed") for one in found.values()):
        raise UsageError(f"--seed: nothing is drawn by lot in {', '.join(found)}.")


def _with_flags(one: Named, options: BudgetOptions) -> Named:
    """It with the settings that it has."""
    pairs = [pair for pair in options.settings if one.has(pair.partition("=")[0].strip()) or "=" not in pair[1:]]
    try:
        one = one.with_pairs(pairs)
    except SettingError as error:
        raise UsageError(f"--set {' --set '.join(pairs)}: {error}") from error
    if options.seed is not None and one.has("seed"):
        one = one.with_values({"seed": options.seed})
    return one
