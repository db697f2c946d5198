"""What a run was at when its process crashed, so that the next one does not crash there again."""

import faulthandler
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from foveate.batch.here import Chunk
from foveate.batch.ranges import Ranges

__all__ = ["Crashes"]

NAME = ".in-hand"


class Crashes:
    """A file in the folder of a job with the rows in hand, and behind them what Python writes when its process crashes.

    A crash is a fault of native code, as of a decoder. `kill -9` leaves nothing behind the rows, so none is blamed for
    it.

    Args:
        folder: Of the job.

    Attributes:
        rows: Rows that were in hand when the last run crashed; none where it did not.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.rows = Ranges()
        with suppress(OSError, ValueError):
            rows, _, crash = self._path.read_text(errors="replace").partition("\n")
            if crash:
                first, last = map(int, rows.split())
                self.rows = Ranges([(first, last)])

    def following(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """The chunks as they are; each is noted when it is taken, to be answered in this process.

        Where Python reports crashes to somebody else already, or there is no room, nothing is noted.
        """
        file = None
        if not faulthandler.is_enabled():
            with suppress(OSError):
                file = self._path.open("wb", buffering=0)
        if file is None:
            yield from chunks
            return
        with file:
            faulthandler.enable(file, all_threads=False)
            try:
                for chunk in chunks:
                    with suppress(OSError):
                        file.seek(0)
                        file.truncate()
                        file.write(f"{chunk[0].number} {chunk[-1].number}\n".encode())
                    yield chunk
            finally:
                faulthandler.disable()
        self._path.unlink(missing_ok=True)
