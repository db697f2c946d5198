"""How a command ends: its exit code, and the error for a command line that cannot be meant."""

from collections.abc import Sequence

from foveate.errors import FoveateError, SettingError, UnknownNameError

__all__ = ["BAD_ROWS", "BUG", "DONE", "FAILED", "WRONG_USAGE", "UsageError", "check_budgets", "check_most", "exit_code"]

DONE, FAILED, WRONG_USAGE, BAD_ROWS = 0, 1, 2, 3
BUG = 70
"""A bug in foveate: EX_SOFTWARE of sysexits.h."""


MOST = 1_000_000
"""The most of anything that a flag asks for: tokens, pictures, rounds or processes."""


class UsageError(FoveateError):
    """The flags contradict each other, or something they need is missing."""


def exit_code(error: FoveateError) -> int:
    """2 where the command line itself is wrong (flags, names, settings), 1 for everything else."""
    return WRONG_USAGE if isinstance(error, UsageError | UnknownNameError | SettingError) else FAILED


def check_most(**numbers: int | None) -> None:
    """Refuse numbers so large that nobody means them, which would end in a lack of memory or never.

    Args:
        numbers: What each flag says, by the flag's name.

    Raises:
        UsageError: If there is one.
    """
    for name, number in numbers.items():
        if number is not None and number > MOST:
            raise UsageError(f"--{name.replace('_', '-')} {number}: {MOST:,} at most.")


def check_budgets(method: Sequence[str], budget: Sequence[float], retention: Sequence[float]) -> None:
    """Refuse methods and budgets, each repeatable, that cannot be meant.

    Raises:
        UsageError: If one is named twice or out of its range, or budgets are given both ways.
    """
    if budget and retention:
        raise UsageError("--budget and --retention say the same thing; give one of them.")
    for flag, values in (("--budget", budget), ("--retention", retention)):
        if wrong := [value for value in values if value <= 0]:
            raise UsageError(f"{flag} {wrong[0]:g}: a budget lies above 0.")
        if len(set(values)) < len(values):
            raise UsageError(f"{flag}: the same budget is named twice.")
    if wrong := [value for value in retention if value > 1]:
        raise UsageError(f"--retention {wrong[0]:g}: a share lies in (0, 1]. For a token count use --budget.")
    if len(set(method)) < len(method):
        raise UsageError("--method: the same name is given twice.")
