"""Several processes, each with a model of its own; only the one that began them writes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import connection
from typing import Any, Self

import torch

from foveate.batch.answering import Answerer, Asking
from foveate.batch.here import Chunk
from foveate.batch.rows import Result
from foveate.errors import InputError, SettingError

__all__ = ["Workers", "check_count", "placed"]

LOOK = 0.2
"""Seconds after which a process that waits looks whether it shall stop."""
DEATHS = 20
"""Processes that may die one after the other without a result. More are no fault of the rows."""

Pending = Future[list[Result]]


class Workers:
    """Processes of this machine. With `device="auto"`, one after the other takes the next accelerator.

    Each is a pool of its own: one that dies takes its chunk along and no other, and another process takes its place.

    Args:
        asking: How each is asked.
        count: How many.

    Raises:
        SettingError: If these are more than the machine can serve.
    """

    def __init__(self, asking: Asking, count: int) -> None:
        check_count(count, max(os.cpu_count() or 1, torch.accelerator.device_count()))
        self._asking = asking
        self._count = count

    def __enter__(self) -> Self:
        self._processes = multiprocessing.get_context("spawn")
        self._stopped = self._processes.Event()
        self._pools = [self._pool(place) for place in range(self._count)]
        self._deaths = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for pool in self._pools:
            if kind is not None:
                for process in list((pool._processes or {}).values()):
                    process.kill()
        for pool in self._pools:
            pool.shutdown(wait=True, cancel_futures=True)

    def about(self) -> dict[str, Any]:
        with _explained():
            abouts = [future.result() for future in [pool.submit(_about) for pool in self._pools]]
        return abouts[0]

    def answered(self, chunks: Iterable[Chunk], stop: Callable[[], bool]) -> Iterator[list[Result]]:
        waiting = iter(chunks)
        free = list(range(self._count))
        pending: dict[Pending, int] = {}
        while True:
            while free and not stop():
                chunk = next(waiting, None)
                if chunk is None:
                    break
                place = free.pop()
                pending[self._submit(place, chunk)] = place
            if not pending:
                return
            done, _ = wait(pending, timeout=LOOK, return_when=FIRST_COMPLETED)
            if stop():
                self._stopped.set()
            for future in done:
                free.append(pending.pop(future))
                try:
                    results = future.result()
                except BrokenProcessPool:  # its chunk has no result
                    continue
                self._deaths = 0
                yield results

    def _pool(self, place: int) -> ProcessPoolExecutor:
        arguments = (self._asking, place, self._count, self._stopped)
        return ProcessPoolExecutor(1, mp_context=self._processes, initializer=_begin, initargs=arguments)

    def _submit(self, place: int, chunk: Chunk) -> Pending:
        """Give a chunk to the process of a place, or to one that takes its place if it has died."""
        try:
            return self._pools[place].submit(_answer, chunk)
        except BrokenProcessPool:
            self._deaths += 1
        with _explained():
            if self._deaths > DEATHS:
                raise BrokenProcessPool
            self._pools[place].shutdown()
            self._pools[place] = self._pool(place)
            self._pools[place].submit(_about).result()
            return self._pools[place].submit(_answer, chunk)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in one line that processes die whatever they are asked."""
    try:
        yield
    except BrokenProcessPool as error:
        raise InputError(
            "Processes that answer rows die, perhaps for want of memory. Run again, with fewer --workers: what was "
            "answered is kept."
        ) from error


_process: dict[str, Any] = {}
"""The model of a process that answers, and what tells it to stop."""


def _begin(asking: Asking, place: int, count: int, stopped: Any) -> None:
    """In a new process: Ctrl-C is for the parent to handle, it ends with the parent, and it has its own device."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    _process["stopped"] = stopped
    _load(placed(asking, place), count)


def _load(asking: Asking, count: int) -> None:
    """Load the model. What is raised is kept for the first call: raised here, it would only break the pool."""
    try:
        _process["answerer"] = Answerer(asking, share=1 / count)
    except Exception as error:
        _process["error"] = error


def _answerer() -> Answerer:
    if "error" in _process:
        raise _process["error"]
    answerer: Answerer = _process["answerer"]
    return answerer


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


def placed(asking: Asking, place: int) -> Asking:
    """The same on the accelerator of this place, where there are several and none was named."""
    if asking.device != "auto" or not torch.accelerator.is_available():
        return asking
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return replace(asking, device=f"{kind.type}:{place % torch.accelerator.device_count()}")


def _about() -> dict[str, Any]:
    return _answerer().about()


def _answer(chunk: Chunk) -> list[Result]:
    return _answerer().answer(chunk, _process["stopped"].is_set)
