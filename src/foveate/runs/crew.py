"""Where the work of a long run is done: in this process, or in several, each with a model of its own.

Items go to a crew, rows come back; what its process dies at is asked alone, and then given up.
"""

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, Self

import torch

from foveate.errors import FoveateError, InputError, SettingError
from foveate.plain.own_files import fault

LOOK = 0.2
"""Seconds after which a process that waits looks whether it shall stop."""
DEATHS = 20
"""Processes that may die one after the other without a result. More are no fault of what they are asked."""

POOL = "FOVEATE_POOL"
"""The environment variable by which a process knows that it belongs to a pool."""
UNGUARDED = 78
"""The exit code of a process that runs the first one's script again."""

Stopped = Callable[[], bool]
Done = tuple[Any, list[Any] | None]
"""An item with rows that it gave, or None where the process died at it."""


Worker = Callable[[Any, Stopped], Iterator[list[Any]]]
"""A process's own, such as a model: the rows of an item as they come; after the second says yes, of what is in hand.
What rows depend on besides the items may be its `about()`, plain values."""
Task = Callable[[int, int], Worker]
"""What a crew does, can be pickled: loads what process `place` of `count` needs, and gives its worker."""


class Here:
    """This process.

    Args:
        task: What is done.
    """

    def __init__(self, task: Task) -> None:
        self._task = task

    def __enter__(self) -> Self:
        self._begun: Any = self._task(0, 1)
        return self

    def __exit__(self, *_: object) -> None:
        del self._begun

    def about(self) -> dict[str, object]:
        """What rows depend on besides the items."""
        about: dict[str, object] = self._begun.about()
        return about

    def work(self, items: Iterable[object], stopped: Stopped) -> Iterator[Done]:
        """Rows as they come, in any order; an item may come several times, each with some of its rows."""
        for item in items:
            for rows in self._begun(item, stopped):
                yield item, rows
            if stopped():
                return


class Together(ABC):
    """Several processes. One that dies takes its item along and no other, and another takes its place.

    Args:
        task: What each does.
        count: How many.
    """

    died: tuple[type[BaseException], ...]
    """What a future raises whose process has died."""

    def __init__(self, task: Task, count: int) -> None:
        self._task = task
        self._count = count

    @abstractmethod
    def __enter__(self) -> Self: ...
    @abstractmethod
    def __exit__(self, kind: object, error: object, trace: object, /) -> None: ...
    @abstractmethod
    def _hire(self, place: int) -> None:
        """Begin the process of a place, in the place of one that has died."""

    @abstractmethod
    def _ask(self, place: int, item: object) -> Future[object]:
        """Its rows of an item, or its `about` where the item is None."""

    def _result(self, future: Future[object]) -> Any:
        """What a process answered; what it raised is raised."""
        return future.result()

    def _stop(self) -> None:  # noqa: B027
        """Tell all to end with what is in hand, where they can be told."""

    def about(self) -> dict[str, object]:
        futures = [self._ask(place, None) for place in range(self._count)]
        try:
            abouts: list[dict[str, object]] = [self._result(future) for future in futures]
        except self.died as error:
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
                self._stop()
            for future in done:
                place, item = pending.pop(future)
                free.append(place)
                try:
                    rows = self._result(future)
                except self.died as error:
                    deaths += 1
                    if deaths > DEATHS:
                        raise _all_die() from error
                    self._hire(place)
                    yield item, None
                    continue
                deaths = 0
                yield item, rows


Crew = Here | Together
"""Who works on items, while the context lasts."""


def _all_die() -> InputError:
    return InputError(
        "Processes die whatever they are asked, perhaps for want of memory. Run again, with fewer --workers: what was "
        "answered is kept."
    )


class Pool(Together):
    """Processes of this machine.

    Raises:
        SettingError: If these are more than the machine can serve.
    """

    died = (BrokenProcessPool,)

    def __init__(self, task: Task, count: int) -> None:
        check_count(count, max(os.cpu_count() or 1, torch.accelerator.device_count()))
        super().__init__(task, count)

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

    def _hire(self, place: int) -> None:
        if place in self._pools:
            self._pools[place].shutdown()
        arguments = (self._task, place, self._count, self._stopped)
        # One that dies breaks its pool, so each has one of its own.
        self._pools[place] = ProcessPoolExecutor(1, self._processes, _begin, arguments)

    def _ask(self, place: int, item: object) -> Future[object]:
        try:
            return self._pools[place].submit(_ask, item)
        except BrokenProcessPool as error:  # it died with nothing in hand
            broken: Future[object] = Future()
            broken.set_exception(error)
            return broken

    def _result(self, future: Future[object]) -> Any:
        try:
            return future.result()
        except BrokenProcessPool:
            processes = [process for pool in self._pools.values() for process in (pool._processes or {}).values()]
            if all(process.exitcode != UNGUARDED for process in processes):
                raise
        raise SettingError(
            "Each worker runs this script again from its top, and would start workers itself: put what the script does "
            'under if __name__ == "__main__":, or take workers=1.'
        )

    def _stop(self) -> None:
        self._stopped.set()


def crew_of(task: Task, workers: int, here: Worker) -> Crew:
    """So many processes of this machine; with one worker, this process, where it has begun already.

    Raises:
        SettingError: If these are more than the machine can serve.
    """
    if workers > 1:
        return Pool(task, workers)
    return Here(lambda place, count: here)


def end_unguarded() -> None:
    """End this process without a word where it belongs to a pool, and comes here as it reads the first one's script."""
    if os.environ.get(POOL) == str(os.getppid()) and hasattr(multiprocessing.current_process(), "_inheriting"):
        os._exit(UNGUARDED)


_process: dict[str, Any] = {}
"""What a process of a pool has begun, and what tells it to stop."""


def _begin(task: Task, place: int, count: int, stopped: object) -> None:
    """In a new process: Ctrl-C is for the parent to handle, it ends with the parent, and threads are shared."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    _process["stopped"] = stopped
    try:
        _process["worker"] = task(place, count)
    except Exception as error:  # raised here, it would only break the pool
        _process["error"] = error


def _ask(item: object) -> object:
    if "error" in _process:
        raise _process["error"]
    try:
        return rows_of(_process["worker"], item, _process["stopped"].is_set)
    except Exception as error:
        if isinstance(error, FoveateError) or (where := fault(error)) is None:
            raise
        raise InputError(where) from error  # on its way to the first process it loses its lines


def rows_of(worker: Any, item: object, stopped: Stopped = lambda: False) -> object:
    """All rows of an item at once; where it is None, the worker's `about`."""
    if item is None:
        return worker.about()
    return [row for rows in worker(item, stopped) for row in rows]


def _end_with_parent() -> None:
    """End this process when its parent is gone, however that ended: nobody would take its answers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def check_count(count: int, units: int) -> None:
    """Refuse more models than there is sense in: over four for each core or accelerator, whichever there are more of.

    Raises:
        SettingError: If there are too many.
    """
    most = 4 * units
    if count > most:
        raise SettingError(f"{count:,} models at a time are too many for this machine: take {most} at most.")


def device_at(place: int, device: str) -> str:
    """The accelerator of this place, where there are several and none was named."""
    if device != "auto" or not torch.accelerator.is_available():
        return device
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return f"{kind.type}:{place % torch.accelerator.device_count()}"


# -- a run --------------------------------------------------------------------------------------------------------

Rows = list[Any]


def _refuse(item: object) -> Rows:
    raise InputError(
        "A process died at what it was asked, and another one too, perhaps for want of memory. Run again with "
        "--workers 1: what is on the disk is not asked again."
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
        items: What is worked on.
        crew: Who works; its context is open.
        take: Keeps rows.
        alone: The smaller items that an item is made of, each of which is asked by itself where a process has died;
            the item itself where it is of one piece.
        given_up: The rows of such a smaller item at which a process has died again; a refusal where it has none.
        stopped: Says that the run shall end behind what is in hand.

    Raises:
        InputError: If processes die whatever they are asked, or at an item that has no rows without a result.
    """
    answered = False

    def work(parts: Iterable[object]) -> list[object]:
        """Take the rows of parts; those that a process died at."""
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
        raise InputError("Processes die whatever they are asked. See what they lack, and run again.")
    if lost:
        take(lost)
