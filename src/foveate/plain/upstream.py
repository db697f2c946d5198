"""Other libraries: one-line errors for their exceptions, and their settings of the whole process, shared by threads.

Nothing here may import torch.
"""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from foveate.errors import InputError, UnsupportedError

LONGEST = 300
"""Maximum characters of another library's message that an error quotes."""

ADDRESS = re.compile(r"<([\w.]+)[^<>]* at 0x[0-9a-fA-F]+>")

HINT = "Give a hub id or a local folder with a config, a processor and safetensors weights."


WITHIN = ("foveate", "contextlib", "torch", "transformers", "sentence_transformers", "accelerate", "peft")
"""Packages whose lines call foveate's on behalf of a user's."""


def warn_caller(text: str) -> None:
    """Warn at the nearest line outside `WITHIN`: the user's, however deep the warning arises."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in WITHIN:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


def install_line(extra: str) -> str:
    """Return the command that installs an extra. It is for a checkout, because foveate is on no package index yet."""
    return f"pip install -e '.[{extra}]' in a checkout of foveate"


@contextmanager
def extra(name: str, why: str) -> Iterator[None]:
    """Turn a failing import into one line that installs an extra.

    Args:
        name: The extra.
        why: What needs which package, as the beginning of a sentence.

    Raises:
        UnsupportedError: If a package is missing.
    """
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(f"{why}: {install_line(name)}.") from error


@contextmanager
def explain(name: str, part: str) -> Iterator[None]:
    """Turn exceptions while loading a part of a model into one-line errors.

    Damaged files make transformers, tokenizers (which raises bare `Exception`s), safetensors and the hub raise
    arbitrary exceptions. This catches all of them except running out of memory, so use it only around their calls.

    Args:
        name: The model name that the user gave.
        part: The part being loaded: "config", "weights", "processor" or "adapter".

    Raises:
        InputError: For any exception.
    """
    try:
        yield
    except ImportError as error:
        line = first_line(error)
        hint = ""
        if "torchvision" in line.lower():
            hint = " Install the one that belongs to your torch: torch 2.13 needs torchvision==0.28.0."
        elif "FlashAttention" in line:
            hint = " Install it, or use another attention kernel, such as sdpa."
        raise InputError(f"Model '{trim(name)}' needs a package that is missing: {line}{hint}") from error
    except BaseException as error:
        of_rust = type(error).__name__ == "PanicException"  # raised by tokenizers; derived from BaseException
        if is_out_of_memory(error) or not (of_rust or isinstance(error, Exception)):
            raise
        raise InputError(f"Model '{trim(name)}' cannot be loaded: {_reason(error, part)}") from error


def _reason(error: BaseException, part: str) -> str:
    """Explain why a part of a model cannot be loaded, and what to do."""
    if isinstance(error, RuntimeError) and "automatic conversion of the weights" in str(error):
        return (
            "its experts' weights do not fit together. "
            "Download it again, or use a checkpoint that was saved for this architecture."
        )
    if type(error) in (OSError, ValueError):  # these have readable messages
        return f"{first_line(error)} {HINT}"
    return f"its {part} cannot be read: {type(error).__name__}: {first_line(error)} Download it again. {HINT}"


def first_line(error: BaseException) -> str:
    """Return the first line of a message, cut to complete sentences, because some continue in the next line."""
    lines = [printable(line.strip()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return f"{type(error).__name__}."
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # a heading: the reason is in the next line
        text = f"{text} {lines[1]}"
    if len(text) > LONGEST:
        return f"{text[:LONGEST]}…"
    if text.endswith((".", "!", "?")):
        return text
    sentences, stop, _ = text.rpartition(". ")
    if stop:
        return f"{sentences}."
    return f"{text}."


def brief(value: object, most: int = 80) -> str:
    """Return a value's repr on one line, at most `most` characters and without memory addresses.

    A value whose repr fails, because it nests too deeply or has too many digits, is described by its type.
    """
    try:
        text = ADDRESS.sub(r"a \1", repr(value))
    except (RecursionError, ValueError):
        text = f"a value of type {type(value).__name__}"
    return trim(text, most)


def trim(name: str, most: int = 200) -> str:
    """Return a name on one line: unprintable characters are escaped, and a long name is cut."""
    text = printable(name)
    if len(text) <= most:
        return text
    return f"{text[:most]}…"


def printable(text: str) -> str:
    """Escape control characters, lone surrogates and other unprintable characters."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def is_out_of_memory(error: BaseException) -> bool:
    """True if running out of memory raised this error: in Python, on an accelerator, in the system, or in torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and "allocate memory" in str(error)


# -- settings of the whole process ------------------------------------------------------------------------------------


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
