"""What plug-ins for other engines share: versions and checks, images of a prompt, columns of a field, and a trace."""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from foveate.errors import ShapeError, UnsupportedError
from foveate.hosts.reducer import Kept
from foveate.plain.writing import publish

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Checks:
    """The versions of an engine on which a plug-in drops: those that its tests run, and those checked on this machine.

    Attributes:
        engine: The engine's package.
        tried: Versions that the tests run, or beginnings of them: "0.32" is every 0.32.x.
    """

    NEAR: ClassVar[dict[str, float]] = {"float32": 1e-3, "bfloat16": 0.2, "float16": 0.1}
    """Largest mean difference of log-probabilities at which two runs are the same, by dtype."""
    SHARE: ClassVar[float] = 1 / 3
    """Largest difference relative to that of the control. Above, it cannot be told from rounding."""

    engine: str
    tried: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The file with the conditions under which a check has passed."""
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(cache, "foveate", f"{self.engine}-checks.json")

    def refuse(self, conditions: Sequence[str], command: str) -> None:
        """Refuse an untried version, unless a check has passed under these conditions.

        Args:
            conditions: The engine's version, and whatever else a check depends on, such as versions and the model.
            command: Runs the check.

        Raises:
            UnsupportedError: If it was not tried and has not passed.
        """
        installed = f"{conditions[0]}."
        if any(installed.startswith(f"{version}.") for version in self.tried) or [*conditions] in self._passed():
            return
        raise UnsupportedError(
            f"foveate is tested with {self.engine} {' and '.join(self.tried)}, and not with {conditions[0]}. "
            f"First run: {command}"
        )

    def note(self, conditions: Sequence[str]) -> None:
        """Remember that a check has passed under these conditions."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        passed = json.dumps([*self._passed(), [*conditions]], indent=1)
        publish(self.path, lambda part: part.write_text(passed), force=True)

    def _passed(self) -> list[list[str]]:
        with suppress(OSError, ValueError, TypeError):
            return list(json.loads(self.path.read_text()))
        return []


@dataclass
class HostTrace:
    """What was dropped of each image, in order.

    Attributes:
        tokens: Vision tokens of each image or video.
        kept: How many rows of it enter the decoder.
        sources: The tokens they stand for, (kept,) int64 each, on the host.
    """

    tokens: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    sources: list[Array] = field(default_factory=list)

    def add(self, images: Iterable[Kept]) -> None:
        """Note what is left of some images."""
        for image in images:
            self.tokens.append(len(image.parent))
            self.kept.append(len(image))
            self.sources.append(np.asarray(image.source.cpu() if isinstance(image.source, Tensor) else image.source))

    def __str__(self) -> str:
        return f"{sum(self.kept)} of {sum(self.tokens)} vision tokens of {len(self.tokens)} images entered the decoder"


def images_of(marks: Any, lengths: Sequence[int] | None = None) -> list[Array]:
    """Find the images of prompts: sample and column of each token of each image, (tokens, 2) int64, in their order.

    Args:
        marks: Which columns are vision tokens, (samples, columns) bool, on the host.
        lengths: Tokens of each image. An image may have text between its tokens. None: each run of marked columns is an
            image.

    Raises:
        ShapeError: If the images have another number of tokens than columns are marked.
    """
    places = np.argwhere(np.asarray(marks))
    if lengths is not None and sum(lengths) != len(places):
        raise ShapeError(f"{len(places)} columns are marked, but the images have {sum(lengths)} tokens.")
    if lengths is not None:
        return np.split(places, np.cumsum(lengths)[:-1])
    # A run begins where a column does not follow the one before it, or the sample changes.
    begins = np.flatnonzero((np.diff(places, axis=0) != (0, 1)).any(axis=1)) + 1
    return np.split(places, begins)


def at_columns(value: Any, columns: Any, axis: int = 0) -> Any:
    """Return a field of a decoder's input at some of its columns: positions, masks, rows, deepstack features.

    Args:
        value: An array or tensor of any kind; None stays None.
        columns: Which columns, (left,) int64 of the same kind; None: all.
        axis: The axis of the columns.
    """
    if value is None or columns is None:
        return value
    return value[(slice(None),) * (axis % value.ndim) + (columns,)]
