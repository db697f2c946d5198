"""What a case is, and what makes it a failure."""

import contextlib
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import foveate
from foveate.errors import FoveateError

__all__ = ["MOST_LINES", "Case", "Outcome", "Refused", "TimeOut", "Wrong", "judge", "limited_memory"]

PACKAGE = Path(foveate.__file__).parent
MOST_LINES = 4
"""Lines of an error."""
MOST_LETTERS = 1500
MOST_MEMORY = 1500 * 2**20
"""Bytes of resident memory that a case may add."""
ROOM = 8 * 2**30
"""Bytes of address space that a case may add, so that a mistake does not take the machine down."""


@dataclass(frozen=True, slots=True)
class Case:
    """Something to try.

    Attributes:
        told: What it is, in a line.
        call: Tries it, in a folder with its files. Returning means that the input was taken, a `FoveateError` or
            `Refused` that it was refused, and every other exception is a failure.
        put: Puts its files into an empty folder.
    """

    told: str
    call: Callable[[Path], object]
    put: Callable[[Path], object] = lambda folder: None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a case went.

    Attributes:
        verdict: "taken", "refused" or "failed".
        words: Why it was refused, or what the failure is.
        sort: Of a failure, what all of its sort have in common.
        report: The traceback of a failure, or what was printed.
        seconds: How long it took.
        memory: Bytes of resident memory that it added at its highest.
    """

    verdict: str
    words: str = ""
    sort: str = ""
    report: str = ""
    seconds: float = 0.0
    memory: int = 0


class Refused(Exception):
    """A refusal as it should be, such as a command's one line."""


class Wrong(Exception):
    """An end that is none of those allowed, such as an exit code of 70; what differs from case to case comes second."""

    def __str__(self) -> str:
        return ": ".join(map(str, self.args))


class TimeOut(BaseException):
    """A case took too long. No `except Exception` catches it."""


def judge(case: Case, folder: Path, limit: float) -> Outcome:
    """Try a case for at most so many seconds, in a process that does nothing else and ends then."""

    def ring(*_: object) -> None:
        raise TimeOut(f"more than {limit:g} s")

    signal.signal(signal.SIGALRM, ring)
    begun, before = time.monotonic(), _highest()
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        verdict, words = _ended(case, folder)
        sort = report = ""
    except BaseException as error:
        verdict, words, sort = "failed", *_words(error)
        report = "".join(traceback.format_exception(error))
    signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, added = time.monotonic() - begun, _highest() - before
    if verdict != "failed" and added > MOST_MEMORY:
        verdict, words, sort = "failed", f"it took {added / 2**20:,.0f} MiB of memory", "memory"
    return Outcome(verdict, words, sort, report, seconds, added)


def _ended(case: Case, folder: Path) -> tuple[str, str]:
    """How a case ended that did not fail.

    Raises:
        Wrong: If its error is not one clear line.
    """
    try:
        case.call(folder)
    except (FoveateError, Refused) as error:
        text = str(error)
        if not text.strip():
            raise Wrong("an error without words") from error
        if text.count("\n") >= MOST_LINES or len(text) > MOST_LETTERS:
            raise Wrong("a long error", f"{text.count(chr(10)) + 1} lines and {len(text)} letters") from error
        return "refused", text
    return "taken", ""


def _words(error: BaseException) -> tuple[str, str]:
    """A failure in a line, and its sort: what it is, and the last place in foveate on the way there."""
    head = f"{type(error).__name__}: {error}".partition("\n")[0][:160]
    if isinstance(error, Wrong):
        return head.removeprefix("Wrong: "), error.args[0]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(PACKAGE)]
    place = f"(in {Path((own or frames)[-1].filename).name}:{(own or frames)[-1].name})"
    return f"{head} {place}", f"{type(error).__name__} {place}"


def _highest() -> int:
    """The highest resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limited_memory() -> None:
    """Let this process have so much more address space, and no more."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + ROOM
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (room, hard))
