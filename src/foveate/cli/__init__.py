"""The command `foveate`: parse, call, print. Each subcommand has its own file."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from foveate.plain.upstream import install_line
from foveate.plain.version import __version__

DONE, FAILED, INTERRUPTED, KILLED = 0, 1, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `foveate` with these arguments (default: those of the process) and return the exit code."""
    if sys.stderr is None:  # closed by the shell with 2>&-
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:  # the next opened file would get its file descriptor
        print("foveate: stdout is closed. Redirect it to a file, or to /dev/null.", file=sys.stderr)
        return FAILED
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may not be valid text
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        return _print_version()
    try:
        with _end_by_kill():
            from foveate.cli.commands import run  # here, so that Ctrl-C during the import is handled too

            return run(words)
    except ModuleNotFoundError as error:
        print(f"foveate: commands need {error.name}: {install_line('cli')}.", file=sys.stderr)
        return FAILED
    except (KeyboardInterrupt, _Killed) as end:
        how, code = ("terminated", KILLED) if isinstance(end, _Killed) else ("interrupted", INTERRUPTED)
        with contextlib.suppress(OSError):
            print(f"foveate: {how}.", file=sys.stderr)
        return code


class _Killed(BaseException):
    """Raised on SIGTERM. A BaseException, so that no `except Exception` catches it."""


@contextlib.contextmanager
def _end_by_kill() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does: partial files are removed and child processes end."""

    def end(*_: object) -> None:
        raise _Killed

    if threading.current_thread() is not threading.main_thread():  # only the main thread can set signal handlers
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
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # else Python fails again when it flushes stdout at exit
        with contextlib.suppress(OSError):
            print(f"foveate: stdout could not be written: {error.strerror}.", file=sys.stderr)
        return FAILED
    return DONE
