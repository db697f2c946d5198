"""Exit codes of the commands, and the error for a wrong command line."""

from foveate.errors import FoveateError

DONE, FAILED, WRONG_USAGE, BAD_ROWS = 0, 1, 2, 3
BUG = 70
"""A bug in foveate; EX_SOFTWARE in sysexits.h."""


class UsageError(FoveateError):
    """The flags contradict each other, or a required one is missing."""
