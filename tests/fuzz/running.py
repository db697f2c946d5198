"""Cases in processes of their own: one that crashes or hangs is a failure, and the others go on."""

import contextlib
import multiprocessing
import os
import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.judging import Case, Outcome, judge, limited_memory

__all__ = ["KINDS", "Kind", "Result", "Task", "made", "run_all", "tried"]


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
"""Each is a module beside this one, which no process but those that try cases imports."""
CHUNK = 20
"""Cases that a process is given at once."""
GRACE = 120.0
"""Seconds beyond a case's limit, and for imports at the start, after which a process is taken for hung."""

Task = tuple[str, int]
"""A kind and an index."""


@dataclass(frozen=True, slots=True)
class Result:
    """A case that was tried."""

    kind: str
    index: int
    told: str
    outcome: Outcome


def made(seed: int, kind: str, index: int, folder: Path) -> Case:
    """The case of this number; its files are put into an empty folder."""
    case: Case = import_module(f"tests.fuzz.{kind}").case(Random(f"{seed}:{kind}:{index}"), folder)
    return case


def tried(seed: int, kind: str, index: int, failures: Path) -> Result:
    """Try one case; what failed is kept in the folder of failures."""
    work = Path(tempfile.mkdtemp(prefix="foveate-case-"))
    folder = work / f"{kind}-{index}"
    folder.mkdir()
    try:
        case = made(seed, kind, index, folder)
        outcome = judge(case, KINDS[kind].limit)
        if outcome.verdict == "failed":
            _keep(folder, failures / folder.name, case, outcome)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Result(kind, index, case.told, outcome)


def _keep(folder: Path, place: Path, case: Case, outcome: Outcome) -> None:
    """Copy the input that failed, with what was said."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            shutil.copy(path, place / path.name)
        elif path.is_dir() and not path.is_symlink():
            shutil.copytree(path, place / path.name, symlinks=True, ignore=_odd)
    report = f"{case.told}\n\n{outcome.words}\n\n{outcome.report}"
    (place / "report.txt").write_text(report, encoding="utf-8", errors="backslashreplace")


def _odd(folder: str, names: Sequence[str]) -> list[str]:
    """Names of what cannot be copied, such as pipes."""
    paths = {name: Path(folder) / name for name in names}
    return [name for name, path in paths.items() if not (path.is_symlink() or path.is_file() or path.is_dir())]


# -- processes ------------------------------------------------------------------------------------------------


def _work(pipe: "Connection[Any, Any]", seed: int, failures: Path) -> None:
    """What a process does: try the cases that come, and send each result."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff and others write there by themselves
    import torch

    torch.set_num_threads(1)
    for kind in KINDS:
        import_module(f"tests.fuzz.{kind}")
    limited_memory()
    while (tasks := pipe.recv()) is not None:
        for kind, index in tasks:
            try:
                pipe.send(tried(seed, kind, index, failures))
            except Exception as error:  # a mistake in the harness itself: the run ends with it
                error.add_note(f"in {kind}:{index}\n{traceback.format_exc()}")
                pipe.send(error)


@dataclass
class _Worker:
    """A process, and the cases it has still to try."""

    seed: int
    failures: Path
    tasks: deque[Task] = field(default_factory=deque)
    heard: float = 0.0

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.seed, self.failures), daemon=True)
        self.process.start()
        theirs.close()
        self.heard = time.monotonic()

    def give(self, tasks: Sequence[Task]) -> None:
        self.tasks = deque(tasks)
        self.heard = time.monotonic()
        self.pipe.send(list(tasks))

    def hear(self) -> Result:
        """The next result; where the process has ended instead, that of the case which ended it."""
        try:
            result: Result | Exception = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return self.lost(f"the process ended with {self.process.exitcode}")
        if isinstance(result, Exception):
            raise result
        self.tasks.popleft()
        self.heard = time.monotonic()
        return result

    def hangs(self) -> bool:
        """Whether nothing was heard for longer than a case may take."""
        if not self.tasks:
            return False
        return time.monotonic() - self.heard > KINDS[self.tasks[0][0]].limit + GRACE

    def lost(self, why: str) -> Result:
        """Give up the case at hand, and go on with the others in a new process."""
        kind, index = self.tasks.popleft()
        self.stop()
        self.start()
        if self.tasks:
            self.give(list(self.tasks))
        return Result(kind, index, "", Outcome("failed", why))

    def end(self) -> None:
        """Let the process end by itself, if it is not in the middle of a case."""
        with contextlib.suppress(OSError):
            self.pipe.send(None)
        self.process.join(0.0 if self.tasks else 10.0)
        self.stop()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run_all(tasks: Sequence[Task], *, seed: int, jobs: int, failures: Path) -> Iterator[Result]:
    """Try all cases, some processes at a time; results come as they are there."""
    chunks = deque(tasks[start : start + CHUNK] for start in range(0, len(tasks), CHUNK))
    workers = [_Worker(seed, failures) for _ in range(min(jobs, len(chunks)))]
    try:
        while chunks or any(worker.tasks for worker in workers):
            for worker in workers:
                if not worker.tasks and chunks:
                    worker.give(chunks.popleft())
            ready = wait([worker.pipe for worker in workers if worker.tasks], timeout=1.0)
            for worker in workers:
                if worker.pipe in ready:
                    yield worker.hear()
                elif worker.hangs():
                    yield worker.lost("the process hangs")
    finally:
        for worker in workers:
            worker.end()
