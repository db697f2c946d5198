"""What transformers and the packages below it raise, said in one line. Nothing here may import torch."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from foveate.errors import InputError

LONGEST = 300
"""Characters of somebody else's message that a line repeats."""

ADDRESS = re.compile(r"<([\w.]+)[^<>]* at 0x[0-9a-fA-F]+>")

HINT = "Give a hub id or a local folder with a config, a processor and safetensors weights."


def install_line(extra: str) -> str:
    """How to install what an extra names. No package index has foveate yet, so this is for a checkout."""
    return f"pip install -e '.[{extra}]' in a checkout of foveate"


@contextmanager
def explain(name: str, part: str) -> Iterator[None]:
    """Turn what is raised while a part of a model is loaded into one line.

    Damaged files make transformers, tokenizers (whose errors are bare `Exception`s), safetensors and the hub raise
    anything. So this catches everything but a lack of memory, and belongs around their calls only.

    Args:
        name: What the user calls the model.
        part: What is loaded: its "config", "weights", "processor" or "adapter".

    Raises:
        InputError: For whatever was raised.
    """
    try:
        yield
    except ImportError as error:
        line = first_line(error)
        hint = ""
        if "torchvision" in line.lower():
            hint = f" It must belong to your torch: {install_line('vision')}."
        elif "FlashAttention" in line:
            hint = " Install it, or take another attention kernel, such as sdpa."
        raise InputError(f"Model '{trim(name)}' needs a package that is missing: {line}{hint}") from error
    except BaseException as error:
        of_rust = type(error).__name__ == "PanicException"  # such as of tokenizers: derived from BaseException
        if is_out_of_memory(error) or not (of_rust or isinstance(error, Exception)):
            raise
        raise InputError(f"Model '{trim(name)}' cannot be loaded: {_reason(error, part)}") from error


def _reason(error: BaseException, part: str) -> str:
    """Why a part of a model cannot be loaded, and what to do."""
    if isinstance(error, RuntimeError) and "automatic conversion of the weights" in str(error):
        return (
            "its experts' weights do not fit together. "
            "Download it again, or use a checkpoint that was saved for this architecture."
        )
    if type(error) in (OSError, ValueError):  # sentences for people
        return f"{first_line(error)} {HINT}"
    return f"its {part} cannot be read: {type(error).__name__}: {first_line(error)} Download it again. {HINT}"


def first_line(error: BaseException) -> str:
    """The first line of a message, cut back to whole sentences: some go on in the lines below."""
    lines = [printable(line.strip()) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return f"{type(error).__name__}."
    text = lines[0]
    if text.endswith(":") and len(lines) > 1:  # a heading: what is wrong is in the next line
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
    """A value's repr as one line can say it: of what nests too deeply, has too many digits or names a place in memory,
    the type."""
    try:
        text = ADDRESS.sub(r"a \1", repr(value))
    except (RecursionError, ValueError):
        text = f"a value of type {type(value).__name__}"
    return trim(text, most)


def trim(name: str, most: int = 200) -> str:
    """A name as one line can say it: what does not print is escaped, and a long one is cut."""
    text = printable(name)
    if len(text) <= most:
        return text
    return f"{text[:most]}…"


def printable(text: str) -> str:
    """A text with its control characters, lone surrogates and the like escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a lack of memory raised this: Python's, an accelerator's, the system's, or that of torch on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError | OSError) and "allocate memory" in str(error)
