"""Settings of other libraries that hold for the whole process: changed while any thread needs it, and then restored."""

import re
import warnings
from collections.abc import Callable
from threading import Lock
from typing import Any


class Shared:
    """A setting of another library, with another value while any thread is inside the context.

    The first thread to enter changes it, and the last to leave restores it. A value that others set meanwhile stays.

    Args:
        read: Returns the value.
        write: Sets it.
        value: The value inside the context.
    """

    def __init__(self, read: Callable[[], Any], write: Callable[[Any], object], value: Any) -> None:
        self._read, self._write, self._value = read, write, value
        self._lock, self._users = Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._before = self._read()
                self._write(self._value)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._read() == self._value:
                self._write(self._before)


def ignored(category: type[Warning], module: str = "") -> Shared:
    """Return a context without these warnings.

    `warnings.catch_warnings` would restore the filters of another thread. This adds one filter, and removes only that.

    Args:
        category: The kind of warning.
        module: A regular expression that the beginning of the module's name matches.
    """
    line = ("ignore", None, category, re.compile(f"(?:{module})"), 0)  # unlike any that filterwarnings makes

    def write(there: bool) -> None:
        filters: Any = warnings.filters
        if there:
            filters.insert(0, line)
        else:
            filters.remove(line)

    return Shared(lambda: line in warnings.filters, write, True)
