"""The command `foveate`: parse, call, print. One file a subcommand."""

import contextlib
import os
import sys
from collections.abc import Sequence

from foveate._version import __version__

__all__ = ["main"]

DONE, FAILED, INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `foveate` with these arguments (default: the program's own); the exit code.

    Raises:
        SystemExit: With 0 after `--help`.
    """
    if sys.stderr is None:  # the shell has closed it, with 2>&-
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:  # the next file opened would take its place
        print("foveate: stdout is closed. Send it to a file, or to /dev/null.", file=sys.stderr)
        return FAILED
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        return _print_version()
    try:
        from foveate.cli.commands import run  # only now, so that Ctrl-C while this loads ends as quietly as later

        return run(words)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("foveate: interrupted.", file=sys.stderr)
        return INTERRUPTED


def _print_version() -> int:
    try:
        print(f"foveate {__version__}", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails once more at its end
        with contextlib.suppress(OSError):
            print(f"foveate: stdout could not be written: {error.strerror}.", file=sys.stderr)
        return FAILED
    return DONE
