"""Python files given in place of a method's name: run them, identify their code, and report where one fails."""

import ast
import hashlib
import json
import linecache
import sys
import sysconfig
import traceback
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from itertools import accumulate
from pathlib import Path

from foveate.errors import InputError
from foveate.plain.files import open_readable

MODULE = "foveate_file_"
"""Prefix of the names of their modules, followed by `fingerprint` of their code."""
VERSIONED = {"foveate", "torch", "transformers"}
"""Packages whose versions are recorded with every answer."""
INSTALLED = {"site-packages", "dist-packages"}
"""Names of the folders of installed packages."""

_imported: dict[str, str] = {}
"""SHA-256 of the files that these files have imported, by module."""


def run_file(path: str) -> types.ModuleType:
    """Run a Python file and return its module. Files with equal code run once.

    Raises:
        InputError: If the file cannot be read or fails. The message contains the line.
    """
    file = Path(path).expanduser().absolute()
    with open_readable(file) as opened:
        source = opened.read()
    digests = digests_of(file)
    name = MODULE + fingerprint(digests)
    if name not in sys.modules:
        others = {module: digest for module, digest in digests.items() if module}
        if any(_imported.get(module, digest) != digest for module, digest in others.items()):
            for module in others:  # Python would keep what it imported before the change
                sys.modules.pop(module, None)
        _imported.update(others)
        sys.modules[name] = types.ModuleType(name)
        sys.path.append(str(file.parent))  # it may import files beside it, as a script does
        try:
            exec(compile(source, str(file), "exec"), vars(sys.modules[name]))
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise InputError(fault(error) or f"{file}: {type(error).__name__}: {error}") from error
        finally:
            sys.path.remove(str(file.parent))
    sys.modules[name].__file__ = str(file)  # of several files with equal code, the last one named
    return sys.modules[name]


def digests_of(file: Path, module: str = "") -> dict[str, str]:
    """Return the SHA-256 of a Python file under "", and of each file that it imports, directly or not, by module.

    Imports are read from the source, those inside functions too. Modules of Python and of installed packages are left
    out, except those of the file's own package.

    Args:
        file: The file.
        module: The name of its module, if it was imported.
    """
    digests: dict[str, str] = {}
    left = [("", file)]
    while left:
        name, path = left.pop()
        with suppress(OSError):  # importing it raises
            source = path.read_bytes()
            digests[name] = hashlib.sha256(source).hexdigest()
            for imported in _names_in(source, name or module, path.stem == "__init__"):
                files = _files_of(imported, file.parent, module.partition(".")[0])
                left += [(other, place) for other, place in files if other not in digests]
    return digests


def fingerprint(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 of the result of `digests_of`; of a file that imports no other, its own."""
    if len(digests) == 1:
        return digests[""]
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _names_in(source: bytes, module: str, is_package: bool) -> Iterator[str]:
    """Yield the dotted names that a module imports. Some are no modules: `from a import b` yields `a.b`."""
    package = module if is_package else module.rpartition(".")[0]
    with suppress(SyntaxError, ValueError, ImportError, RecursionError):  # running it raises, or it is no source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = resolve_name("." * node.level + (node.module or ""), package)
                yield from (f"{origin}.{alias.name}" for alias in node.names)


def _files_of(name: str, folder: Path, own: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a dotted name and of the packages around it, each after its module's name.

    Args:
        name: The name.
        folder: Where modules are looked for, besides Python's path.
        own: A package that is not left out although it is installed.
    """
    search, top = [*sys.path, str(folder)], name.partition(".")[0]
    for module in accumulate(name.split("."), "{}.{}".format):
        spec = PathFinder.find_spec(module, search) or getattr(sys.modules.get(module), "__spec__", None)
        if spec is None or top in VERSIONED:
            return
        search, path = list(spec.submodule_search_locations or ()), Path(spec.origin or "")
        is_installed = path.is_relative_to(sysconfig.get_path("stdlib")) or not INSTALLED.isdisjoint(path.parts)
        if is_installed and top != own:
            return
        if spec.has_location:
            yield module, path


def files_run() -> list[str]:
    """Return the files that were run."""
    return [str(module.__file__) for name, module in sys.modules.items() if name.startswith(MODULE)]


def fault(error: BaseException, outside: tuple[str, ...] | None = None) -> str | None:
    """Describe where and why one of these files failed; None if the error comes from elsewhere.

    With `outside`: the last line that is of none of these packages, whichever file it is in.
    """

    def is_own(module: str) -> bool:
        return module.startswith(MODULE) if outside is None else module.partition(".")[0] not in outside

    lines = [
        (frame.f_code.co_filename, number)
        for frame, number in traceback.walk_tb(error.__traceback__)
        if is_own(str(frame.f_globals.get("__name__")))
    ]
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        lines.append((error.filename, error.lineno))
    if not lines:
        return None
    file, number = lines[-1]
    return f"{file}, line {number}, {linecache.getline(file, number).strip()!r}: {type(error).__name__}: {error}"
