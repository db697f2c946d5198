"""How a command ends: its exit code, and the error for a command line that cannot be meant."""

from foveate.errors import FoveateError

DONE, FAILED, WRONG_USAGE, BAD_ROWS = 0, 1, 2, 3
BUG = 70
"""A bug in foveate: EX_SOFTWARE of sysexits.h."""


class UsageError(FoveateError):
    """The flags contradict each other, or something they need is missing."""
