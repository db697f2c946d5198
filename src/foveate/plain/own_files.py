"""Python files that are named where a method's name goes: they are run, and it is said where one fails."""

import hashlib
import linecache
import sys
import traceback
import types
from pathlib import Path

from foveate.errors import InputError
from foveate.plain.files import open_readable

MODULE = "foveate_file_"
"""How the names of their modules begin; the SHA-256 of the file follows."""


def run_file(path: str) -> types.ModuleType:
    """The module of a Python file; one with these bytes is run once.

    Raises:
        InputError: If it cannot be read, or fails; the message has the line.
    """
    file = Path(path).expanduser().absolute()
    with open_readable(file) as opened:
        source = opened.read()
    name = MODULE + hashlib.sha256(source).hexdigest()
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        try:
            exec(compile(source, str(file), "exec"), vars(sys.modules[name]))
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise InputError(fault(error) or f"{file}: {type(error).__name__}: {error}") from error
    sys.modules[name].__file__ = str(file)  # of several with these bytes the one that was named last
    return sys.modules[name]


def files_run() -> list[str]:
    """The files that were run."""
    return [str(module.__file__) for name, module in sys.modules.items() if name.startswith(MODULE)]


def fault(error: BaseException) -> str | None:
    """Where such a file failed, with the line, and why; None for errors of no such file."""
    lines = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(MODULE)
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        lines.append((error.filename, error.lineno))
    if not lines:
        return None
    file, number = lines[-1]
    return f"{file}, line {number}, {linecache.getline(file, number).strip()!r}: {type(error).__name__}: {error}"
