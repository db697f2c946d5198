"""The command `foveate`: parse, call, print. One file a subcommand."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from foveate.plain.version import __version__

DONE, FAILED, INTERRUPTED, KILLED = 0, 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `foveate` with these arguments (default: the program's own); the exit code."""
    if sys.stderr is None:  # the shell has closed it, with 2>&-
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:  # the next file opened would take its place
        print("foveate: stdout is closed. Send it to a file, or to /dev/null.", file=sys.stderr)
        return FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may be no text
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        return _print_version()
    try:
        with _end_by_kill():
            from foveate.cli.commands import run  # only now, so that Ctrl-C while this loads ends as quietly as later

            return run(words)
    except (KeyboardInterrupt, _Killed) as end:
        how, code = ("terminated", KILLED) if isinstance(end, _Killed) else ("interrupted", INTERRUPTED)
        with contextlib.suppress(OSError):
            print(f"foveate: {how}.", file=sys.stderr)
        return code


class _Killed(BaseException):
    """`kill` has asked the program to end. No `except Exception` catches it."""


@contextlib.contextmanager
def _end_by_kill() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does: half files are removed, and processes of its own end too."""

    def end(*_: object) -> None:
        raise _Killed

    if threading.current_thread() is not threading.main_thread():  # no other thread may say what signals do
        yield
        return
    before = signal.signal(signal.SIGTERM, end) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print_version() -> int:
    try:
        print(f"foveate {__version__}", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails once more at its end
        with contextlib.suppress(OSError):
            print(f"foveate: stdout could not be written: {error.strerror}.", file=sys.stderr)
        return FAILED
    return DONE
