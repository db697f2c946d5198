"""Each case in a process of its own, a copy of this one: what crashes it or hangs is found and shrunk like the rest."""

import faulthandler
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, strategies

from tests.fuzz.judging import Case, Outcome, judge, limited_memory

__all__ = ["KINDS", "Found", "Kind", "Tally", "hunt", "hunted", "tried"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input.

    Attributes:
        count: Cases at full scale.
        limit: Seconds that a case may take.
    """

    count: int
    limit: float


KINDS = {
    "pictures": Kind(10_000, limit=20.0),
    "settings": Kind(10_000, limit=10.0),
    "records": Kind(10_000, limit=10.0),
    "films": Kind(2_000, limit=30.0),
    "lines": Kind(2_000, limit=90.0),
    "folders": Kind(500, limit=60.0),
}
"""Each is a module beside this one."""
GRACE = 20.0
"""Seconds beyond a case's limit after which its process is taken for hung."""
FORK = multiprocessing.get_context("fork")
NUMBER = re.compile(r"\d+")
BLOB = re.compile(r"@reproduce_failure\('[^']*', b'([^']*)'\)")


@dataclass(frozen=True, slots=True)
class Found:
    """A way to fail: a shrunk case, how it went, and what makes it again."""

    told: str
    outcome: Outcome
    blob: str


@dataclass
class Tally:
    """How the cases of a kind went."""

    verdicts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    found: list[Found] = field(default_factory=list)


class Failed(Exception):
    """A case that failed, and how."""


@cache
def _sort(words: str) -> type[Failed]:
    """A type for each way to fail: hypothesis shrinks one case of each."""
    return type("Failed", (Failed,), {"__doc__": words})


def tried(case: Case, limit: float) -> Outcome:
    """Try a case in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="foveate-case-", ignore_cleanup_errors=True) as work:
        log, folder = Path(work) / "stderr", Path(work) / "case"
        folder.mkdir()
        case.put(folder)
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_judged, args=(theirs, case, folder, limit, log))
        process.start()
        theirs.close()
        try:
            if not ours.poll(limit + GRACE):
                return Outcome("failed", "the process hangs")
            outcome: Outcome = ours.recv()
        except EOFError:
            process.join()
            return Outcome("failed", f"the process ended with {process.exitcode}", log.read_text(errors="replace"))
        finally:
            process.kill()
            process.join()
            ours.close()
    return outcome


def _judged(pipe: "Connection[Any, Any]", case: Case, folder: Path, limit: float, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)  # libtiff and others write there by themselves
    faulthandler.enable(2)
    limited_memory()
    pipe.send(judge(case, folder, limit))


def hunt(
    cases: strategies.SearchStrategy[Case], *, count: int, limit: float, seed: int = 0, blob: str = "", kept: Path
) -> Tally:
    """Try so many cases, or the one that a blob makes again; a shrunk one of each way to fail is kept in a folder."""
    tally, begun = Tally(), time.monotonic()

    @hypothesis.settings(
        max_examples=count, database=None, deadline=None, derandomize=False, print_blob=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(cases)
    def check(case: Case) -> None:
        outcome = tried(case, limit)
        tally.verdicts[outcome.verdict] += 1
        tally.memory = max(tally.memory, outcome.memory)
        if outcome.verdict == "failed":
            raise _sort(NUMBER.sub("N", outcome.words))(case, outcome)

    seeded = hypothesis.reproduce_failure(hypothesis.__version__, blob.encode()) if blob else hypothesis.seed(seed)
    try:
        seeded(check)()
    except hypothesis.errors.DidNotReproduce:
        pass
    except (Failed, BaseExceptionGroup) as error:
        for number, failed in enumerate(_leaves(error)):
            case, outcome = failed.args
            again = BLOB.search("\n".join(getattr(failed, "__notes__", ())))
            tally.found.append(Found(case.told, outcome, again[1] if again else blob))
            _keep(case, outcome, kept.with_name(f"{kept.name}-{number}"))
    tally.seconds = time.monotonic() - begun
    return tally


def hunted(kind: str, part: int, parts: int, scale: float, seed: int, blob: str, out: Path) -> Tally:
    """A part of a kind's cases; at least one."""
    count = max(1, (round(KINDS[kind].count * scale) + part) // parts)
    cases = import_module(f"tests.fuzz.{kind}").cases()
    place = out / f"{kind}-{part}"
    return hunt(cases, count=count, limit=KINDS[kind].limit, seed=seed * parts + part, blob=blob, kept=place)


def _leaves(error: BaseException) -> list[BaseException]:
    """The failures of a group; what else there is, such as a mistake in the harness itself, is raised."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    if isinstance(error, Failed):
        return [error]
    raise error


def _keep(case: Case, outcome: Outcome, place: Path) -> None:
    """Write the input that failed, with what was said."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "case").mkdir(parents=True)
    case.put(place / "case")
    report = f"{case.told}\n\n{outcome.words}\n\n{outcome.report}"
    (place / "report.txt").write_text(report, encoding="utf-8", errors="backslashreplace")
