"""What a process has in hand, so that the next run knows what crashed it."""

import faulthandler
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any


class InHand:
    """A file with what this process has in hand, and behind it what Python writes when a process crashes.

    A crash is a fault of native code, as of a decoder. `kill -9` leaves nothing behind the name, so nobody is blamed
    for it.

    Args:
        folder: Of the run.

    Attributes:
        crashed: What was in hand when the last run crashed; None where it did not.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".in-hand"
        self.crashed: str | None = None
        with suppress(OSError):
            name, _, crash = self._path.read_text(errors="replace").partition("\n")
            self.crashed = name if crash else None

    def following(self, items: Iterable[Any], name_of: Callable[[Any], str]) -> Iterator[Any]:
        """The items as they are; each is noted when it is taken, to be worked on in this process.

        Where Python reports crashes to somebody else already, or there is no room, nothing is noted.
        """
        file = None
        if not faulthandler.is_enabled():
            with suppress(OSError):
                file = self._path.open("wb", buffering=0)
        if file is None:
            yield from items
            return
        with file:
            faulthandler.enable(file, all_threads=False)
            try:
                for item in items:
                    with suppress(OSError):
                        file.seek(0)
                        file.truncate()
                        file.write(f"{name_of(item)}\n".encode())
                    yield item
            finally:
                faulthandler.disable()
        self._path.unlink(missing_ok=True)
