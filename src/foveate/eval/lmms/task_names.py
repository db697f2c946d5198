"""Which task names occur in lmms-eval's files: a look that takes a tenth of a second, where its own index takes ten.

A name that occurs in none of them is no task. One that does may be a task: `harness.check_names` knows.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from foveate._upstream import install_line
from foveate.errors import InputError, UnsupportedError
from foveate.eval.lmms.benchmarks import BENCHMARKS, resolve

__all__ = ["check_folders", "check_installed", "check_written"]

DECLARED = re.compile(r"""^(?:task|group|tag):\s*["']?([\w.-]+)""", re.MULTILINE)


def check_installed() -> None:
    """Refuse to go on without lmms-eval.

    Raises:
        UnsupportedError: If it is not installed.
    """
    if find_spec("lmms_eval") is None:
        raise UnsupportedError(
            f"Benchmarks by name are run by lmms-eval, which is not installed: {install_line('eval')}, "
            "with -c constraints.txt (docs/guides/benchmarks.md says how to keep your torch)."
        )


def check_folders(include: Sequence[Path]) -> None:
    """Refuse folders of tasks that there are not.

    Raises:
        InputError: If there is one.
    """
    for folder in include:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder} to take tasks from.")


def check_written(names: Sequence[str], include: Sequence[Path] = ()) -> None:
    """Refuse names that can be no benchmark's, before anything slow is imported.

    Raises:
        InputError: If there is no such folder of tasks.
        UnknownNameError: If a name is neither ours nor in a file of lmms-eval or of these folders.
    """
    check_folders(include)
    unknown = [name for name in names if name not in BENCHMARKS]
    package = find_spec("lmms_eval")
    if not unknown or package is None or package.origin is None:
        return
    texts = list(_texts([Path(package.origin).parent / "tasks", *include]))
    for name in unknown:
        word = re.compile(rf"(?<!\w){re.escape(name)}(?!\w)")
        if not any(word.search(text) for text in texts):
            declared = {task for text in texts for task in DECLARED.findall(text)}
            resolve([name], sorted(declared - {name}))


def _texts(folders: Sequence[Path]) -> Iterator[str]:
    """The YAML files in these folders; templates that others include have names such as _default_template_yaml."""
    for folder in folders:
        for file in sorted(folder.rglob("*yaml*")):
            if file.is_file():
                yield file.read_text(encoding="utf-8", errors="replace")
