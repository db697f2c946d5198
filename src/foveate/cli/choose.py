"""From `--method`, `--budget`, `--retention`, `--set` and `--seed` to what is to be run."""

from collections.abc import Sequence

from foveate.cli.checks import check_budget, check_settings
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
    check_budget(names, options)
    found = {name: read(name) for name in names}
    schedules = {name for one in found.values() for member in one.members for name in member.kind.schedule}
    check_settings({name: one.settings() for name, one in found.items()}, schedules, options)
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
