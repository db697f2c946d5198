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

from tests.forked import mend_threads
from tests.fuzz.judging import Case, Outcome, judge, limited_memory

__all__ = ["KINDS", "Found", "Kind", "Tally", "hunt", "hunted", "strategies_of", "tried"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input.

    Attributes:
        count: Cases at full scale, over all its strategies.
        limit: Seconds that a case may take.
    """

    count: int
    limit: float


KINDS = {
    "lines": Kind(5_000, limit=90.0),
    "films": Kind(20_000, limit=30.0),
    "folders": Kind(1_000, limit=60.0),
    "pictures": Kind(10_000, limit=20.0),
    "settings": Kind(10_000, limit=10.0),
    "records": Kind(10_000, limit=10.0),
}
"""Each is a module beside this one."""
GRACE = 20.0
"""Seconds beyond a case's limit after which its process is taken for hung."""
FORK = multiprocessing.get_context("fork")
BLOB = re.compile(r"@reproduce_failure\('[^']*', b'([^']*)'\)")


@dataclass(frozen=True, slots=True)
class Found:
    """A way to fail: a shrunk case, how it went, and what makes it again."""

    told: str
    outcome: Outcome
    blob: str


@dataclass
class Tally:
    """How the cases of one strategy went."""

    number: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    memory: int = 0
    found: list[Found] = field(default_factory=list)


class Failed(Exception):
    """A case that failed, and how."""


@cache
def _type(sort: str) -> type[Failed]:
    """A type for each sort of failure: hypothesis shrinks one case of each."""
    return type("Failed", (Failed,), {"__doc__": sort})


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
                return Outcome("failed", "the process hangs", "hangs")
            outcome: Outcome = ours.recv()
        except EOFError:
            process.join()
            words = f"the process ended with {process.exitcode}"
            return Outcome("failed", words, words, log.read_text(errors="replace"))
        finally:
            process.kill()
            process.join()
            ours.close()
    return outcome


def _judged(pipe: "Connection[Any, Any]", case: Case, folder: Path, limit: float, log: Path) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)  # libtiff and others write there by themselves
    faulthandler.enable(2)
    mend_threads()
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
            raise _type(outcome.sort)(case, outcome)

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


def hunted(kind: str, part: int, *, scale: float, seed: int, blob: str, out: Path) -> Tally:
    """The cases of one of a kind's strategies; at least one."""
    parts = strategies_of(kind)
    count = max(1, round(KINDS[kind].count * scale / len(parts)))
    place = out / f"{kind}-{part}"
    tally = hunt(parts[part], count=count, limit=KINDS[kind].limit, seed=100 * seed + part, blob=blob, kept=place)
    tally.number = part
    return tally


@cache
def strategies_of(kind: str) -> list[strategies.SearchStrategy[Case]]:
    """The strategies of a kind, after its first imports."""
    cases: list[strategies.SearchStrategy[Case]] = import_module(f"tests.fuzz.{kind}").cases()
    return cases


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
