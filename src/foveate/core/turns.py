"""A lock that threads get in the order in which they ask for it."""

import threading
from collections import deque
from collections.abc import Callable

CHECK = 0.05
"""After how many seconds, again and again, a thread that waits asks whether it should go on waiting."""


def _never() -> bool:
    return False


class Turn:
    """A lock that threads get in the order in which they ask, so that each waits only for calls before its own.

    `threading.RLock` goes to any thread, often to the one that has just released it. As there, the thread that holds it
    may take it again.

    Attributes:
        owner: Identity of the thread that holds it (`threading.get_ident`); None: it is free.
    """

    def __init__(self) -> None:
        self.owner: int | None = None
        self._depth = 0
        self._queue: deque[tuple[int, threading.Lock]] = deque()
        self._guard = threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1, gives_up: Callable[[], bool] = _never) -> bool:
        """Wait for the lock. Returns whether this thread holds it now.

        Args:
            blocking, timeout: As for `threading.RLock`.
            gives_up: Asked now and then while the thread waits; it leaves the queue once this returns True.
        """
        thread = threading.get_ident()
        if self.owner == thread:
            self._depth += 1
            return True
        gate = threading.Lock()
        gate.acquire()  # `release` opens it when the turn of this thread has come
        with self._guard:
            if self.owner is None:
                self.owner, self._depth = thread, 1
                return True
            if not blocking or gives_up():
                return False
            self._queue.append((thread, gate))
        came = False
        try:
            if timeout >= 0:
                came = gate.acquire(timeout=timeout)
            while timeout < 0 and not came and not gives_up():
                came = gate.acquire(timeout=CHECK)
        except BaseException:
            if not self._leaves(thread, gate):
                self.release()
            raise
        return came or not self._leaves(thread, gate)

    def release(self) -> None:
        """Release the lock, or give it to the thread that has waited longest."""
        if self.owner != threading.get_ident():
            raise RuntimeError("cannot release a turn of another thread")
        with self._guard:
            self._depth -= 1
            if self._depth:
                return
            self.owner = None
            if self._queue:
                (self.owner, gate), self._depth = self._queue.popleft(), 1
                gate.release()

    def _leaves(self, thread: int, gate: threading.Lock) -> bool:
        """Take a thread out of the queue. Returns False if it has got the lock in the meantime."""
        with self._guard:
            if (thread, gate) not in self._queue:
                return False
            self._queue.remove((thread, gate))
            return True

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
