"""`Crew`: does the work of a long run in this process, or in several with one model each.

Items go in, rows come out. If a process dies, its item is split and retried, and then given up.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Protocol, Self

import torch

from foveate.errors import FoveateError, InputError, SettingError
from foveate.plain.own_files import fault

LOOK = 0.2
"""Seconds between checks for a stop while waiting."""
DEATHS = 20
"""Maximum processes that may die in a row without a result. If more die, the cause is not the items."""

POOL = "FOVEATE_POOL"
"""Environment variable that tells a process that it belongs to a pool."""
UNGUARDED = 78
"""Exit code of a worker process that runs the main script again from its top."""

Stopped = Callable[[], bool]
Done = tuple[Any, list[Any] | None]
"""An item with some of its rows, or with None if its process died."""


class Worker(Protocol):
    """Works on items in one process, such as a model."""

    def about(self) -> dict[str, Any]:
        """Return plain values that rows depend on besides the items."""

    def rows(self, item: Any, stopped: Stopped) -> Iterator[list[Any]]:
        """Yield the rows of an item as they come. Once `stopped` returns True, end after those in progress."""


Task = Callable[[int, int], Worker]
"""Loads what process `place` of `count` needs, and returns its worker. Must be picklable."""


class Here:
    """A crew of this process alone.

    Args:
        task: Makes the worker.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def __enter__(self) -> Self:
        self._begun = self._task(0, 1)
        return self

    def __exit__(self, *_: object) -> None:
        del self._begun

    def about(self) -> dict[str, object]:
        """Return plain values that rows depend on besides the items."""
        return self._begun.about()

    def work(self, items: Iterable[object], stopped: Stopped) -> Iterator[Done]:
        """Yield items with rows as they come, in any order. An item may come several times, each with some rows."""
        for item in items:
            for rows in self._begun.rows(item, stopped):
                yield item, rows
            if stopped():
                return


def _all_die() -> InputError:
    return InputError(
        "Processes die on every question, perhaps because memory is short. Run again with fewer --workers: the "
        "answers so far are kept."
    )


class Pool:
    """A crew of processes on this machine. If one dies, only its item is lost, and a new process replaces it.

    Args:
        task: Makes each process's worker.
        count: Number of processes.

    Raises:
        SettingError: If there are more than four for each core or accelerator, whichever are more.
    """

    def __init__(self, task: Task, count: int) -> None:
        most = 4 * max(os.cpu_count() or 1, torch.accelerator.device_count())
        if count > most:
            raise SettingError(f"{count:,} models at a time are too many for this machine: use {most} at most.")
        self._task = task
        self._count = count

    def __enter__(self) -> Self:
        self._processes = multiprocessing.get_context("spawn")
        self._stopped = self._processes.Event()
        self._pools: dict[int, ProcessPoolExecutor] = {}
        os.environ[POOL] = str(os.getpid())
        for place in range(self._count):
            self._hire(place)
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        os.environ.pop(POOL, None)
        for pool in self._pools.values():
            if kind is not None:
                for process in list((pool._processes or {}).values()):
                    process.kill()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def about(self) -> dict[str, object]:
        futures = [self._ask(place, None) for place in range(self._count)]
        try:
            abouts: list[dict[str, object]] = [self._result(place, future) for place, future in enumerate(futures)]
        except BrokenProcessPool as error:
            raise _all_die() from error
        return abouts[0]

    def work(self, items: Iterable[object], stopped: Stopped) -> Iterator[Done]:
        waiting, free, deaths = iter(items), list(range(self._count)), 0
        pending: dict[Future[object], tuple[int, object]] = {}
        while True:
            while free and not stopped() and (item := next(waiting, None)) is not None:
                place = free.pop()
                pending[self._ask(place, item)] = place, item
            if not pending:
                return
            done, _ = wait(pending, timeout=LOOK, return_when=FIRST_COMPLETED)
            if stopped():
                self._stopped.set()
            for future in done:
                place, item = pending.pop(future)
                free.append(place)
                try:
                    rows = self._result(place, future)
                except BrokenProcessPool as error:
                    deaths += 1
                    if deaths > DEATHS:
                        raise _all_die() from error
                    self._hire(place)
                    yield item, None
                    continue
                deaths = 0
                yield item, rows

    def _hire(self, place: int) -> None:
        """Start the process at a place, or replace it if it has died."""
        if place in self._pools:
            self._pools[place].shutdown()
        arguments = (self._task, place, self._count, self._stopped)
        # A process that dies breaks its pool, so each process has its own.
        self._pools[place] = ProcessPoolExecutor(1, self._processes, _begin, arguments)

    def _ask(self, place: int, item: object) -> Future[object]:
        """Send an item to a process. The future has its rows, or `about()` if the item is None."""
        try:
            return self._pools[place].submit(_ask, item)
        except BrokenProcessPool as error:  # it died while idle
            broken: Future[object] = Future()
            broken.set_exception(error)
            return broken

    def _result(self, place: int, future: Future[object]) -> Any:
        """Return the result of a place's future, or raise its exception."""
        try:
            return future.result()
        except BrokenProcessPool:
            processes = list((self._pools[place]._processes or {}).values())
            self._pools[place].shutdown()  # waits for the process: before that, its exit code may not be known
            if all(process.exitcode != UNGUARDED for process in processes):
                raise
        raise SettingError(
            "Each worker runs this script again from its top, and would start workers itself: put the script's code "
            'under if __name__ == "__main__":, or set workers=1.'
        )


Crew = Here | Pool
"""Works on items while its context lasts."""


def end_unguarded() -> None:
    """Exit silently if this is a pool's process that is running the main script again."""
    if os.environ.get(POOL) == str(os.getppid()) and hasattr(multiprocessing.current_process(), "_inheriting"):
        os._exit(UNGUARDED)


def rows_of(worker: Worker, item: object, stopped: Stopped = lambda: False) -> list[Any]:
    """Return all rows of an item."""
    return [row for rows in worker.rows(item, stopped) for row in rows]


_process: dict[str, Any] = {}
"""What `_begin` left for `_ask`, if this process belongs to a pool."""


def _begin(task: Task, place: int, count: int, stopped: Any) -> None:
    """Initialise a new process: leave Ctrl-C to the parent, end with the parent, and share CPU threads evenly.

    An error of loading is raised by the first `_ask`. Here it would only look as if the process had died.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    _process["stopped"] = stopped.is_set
    try:
        _process["worker"] = task(place, count)
    except Exception as error:
        _process["error"] = error


def _ask(item: object) -> object:
    """Return `rows_of` an item, or the worker's `about()` if it is None."""
    if "error" in _process:
        raise _process["error"]
    try:
        return _process["worker"].about() if item is None else rows_of(_process["worker"], item, _process["stopped"])
    except Exception as error:
        if isinstance(error, FoveateError) or (where := fault(error)) is None:
            raise
        raise InputError(where) from error  # pickling would lose the traceback's lines


def _end_with_parent() -> None:
    """End this process when its parent has ended, because nobody would read its answers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def device_at(place: int, device: str) -> str:
    """Return the device of a process: with "auto", accelerators are assigned in turn."""
    if device != "auto" or not torch.accelerator.is_available():
        return device
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return f"{kind.type}:{place % torch.accelerator.device_count()}"


# -- a run --------------------------------------------------------------------------------------------------------

Rows = list[Any]


def _refuse(item: object) -> Rows:
    raise InputError(
        "Two processes died at the same question, perhaps because memory is short. Run again with --workers 1: answers "
        "on the disk are not asked again."
    )


def work_through(
    items: Iterable[object],
    crew: Crew,
    take: Callable[[Rows], object],
    *,
    alone: Callable[[Any], Iterable[object]] = lambda item: [item],
    given_up: Callable[[Any], Rows] = _refuse,
    stopped: Stopped = lambda: False,
) -> None:
    """Let a crew work on items, and take their rows as they come.

    Args:
        items: The items.
        crew: The crew, with its context open.
        take: Stores rows.
        alone: Splits an item whose process died into smaller items, which are retried one by one.
        given_up: Returns the rows of a smaller item whose process died again. The default raises an error.
        stopped: Returns whether the run should end after the rows in progress.

    Raises:
        InputError: If processes die whatever they work on, or by default at a smaller item.
    """
    answered = False

    def work(parts: Iterable[object]) -> list[object]:
        """Take the rows of parts. Return the parts whose process died."""
        nonlocal answered
        died = []
        for part, rows in crew.work(parts, stopped):
            if rows is None:
                died.append(part)
            else:
                take(rows)
                answered = True
        return died

    died = work(items)
    if not died or stopped():
        return
    lost = [row for part in work(part for item in died for part in alone(item)) for row in given_up(part)]
    if not answered and len(lost) > DEATHS:
        raise InputError("Processes die on every question. Check what they lack, such as memory, and run again.")
    if lost:
        take(lost)
