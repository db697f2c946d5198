"""Python files given in place of a method's name: run them, and report where one fails."""

import hashlib
import linecache
import sys
import traceback
import types
from pathlib import Path

from foveate.errors import InputError
from foveate.plain.files import open_readable

MODULE = "foveate_file_"
"""Prefix of the names of their modules, followed by the SHA-256 of the file."""


def run_file(path: str) -> types.ModuleType:
    """Run a Python file and return its module. Files with equal content run once.

    Raises:
        InputError: If the file cannot be read or fails. The message contains the line.
    """
    file = Path(path).expanduser().absolute()
    with open_readable(file) as opened:
        source = opened.read()
    name = MODULE + hashlib.sha256(source).hexdigest()
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        sys.path.append(str(file.parent))  # it may import files beside it, as a script does
        try:
            exec(compile(source, str(file), "exec"), vars(sys.modules[name]))
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise InputError(fault(error) or f"{file}: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(str(file.parent))
    sys.modules[name].__file__ = str(file)  # of several files with equal content, the last one named
    return sys.modules[name]


def files_run() -> list[str]:
    """Return the files that were run."""
    return [str(module.__file__) for name, module in sys.modules.items() if name.startswith(MODULE)]


def fault(error: BaseException, outside: tuple[str, ...] | None = None) -> str | None:
    """Describe where and why one of these files failed; None if the error comes from elsewhere.

    With `outside`: the last line that is of none of these packages, whichever file it is in.
    """
    lines = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if _is_of(str(frame.f_globals.get("__name__")), outside)
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        lines.append((error.filename, error.lineno))
    if not lines:
        return None
    file, number = lines[-1]
    return f"{file}, line {number}, {linecache.getline(file, number).strip()!r}: {type(error).__name__}: {error}"


def _is_of(module: str, outside: tuple[str, ...] | None) -> bool:
    if outside is None:
        return module.startswith(MODULE)
    return module.partition(".")[0] not in outside
