"""How much memory may still be taken: of the machine, and of the container around it (control groups of version 2).

Refusing what does not fit beats being killed: the system ends a process that goes over a container's limit without a
word. Nothing here may import torch or NumPy.
"""

import os
from pathlib import Path

from foveate.errors import FoveateError, InputError

GIB = 2**30


def check_room(what: str, need: float, advice: str, kind: type[FoveateError] = InputError) -> None:
    """Refuse what takes more memory than there is.

    Args:
        what: What takes it, with its size: the subject of a sentence, and its verb "take".
        need: How many bytes it takes.
        advice: What to do instead, as a sentence.
        kind: What is raised.

    Raises:
        FoveateError: If less is available.
    """
    free = available()
    if need > free:
        raise kind(f"{what} about {_size(need)} of memory, and {_size(free)} are available here. {advice}")


def available() -> float:
    """Bytes of memory that this process may still take; infinite where the system does not tell."""
    kilobytes = _fields(Path("/proc/meminfo")).get("MemAvailable:")  # what is there without swapping
    if kilobytes is not None:
        return min(1024.0 * kilobytes, _containers())
    if not hasattr(os, "sysconf"):
        return _containers()
    return min(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), _containers())


def _size(count: float) -> str:
    """8.2 GiB, or 120 MiB."""
    if count < GIB:
        return f"{max(count, 0) / 2**20:.0f} MiB"
    return f"{count / GIB:,.1f} GiB"


def _containers(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """What the tightest control group around this process leaves.

    Args:
        root: Where the groups are mounted. Inside a container, only the root may be there.
        own: Which group this process is in: the line `0::/user.slice`.
    """
    path = next((line[3:] for line in _text(own).splitlines() if line.startswith("0::")), "/")
    inside = Path(path.lstrip("/"))
    groups = [root]
    if ".." not in inside.parts:
        groups = [root / inside, *(root / parent for parent in inside.parents)]
    return min(map(_memory_left, groups))


def _memory_left(group: Path) -> float:
    """What is left of a group's limit; files that are held in memory only for speed make room when it is needed."""
    most, used = _number(group / "memory.max"), _number(group / "memory.current")
    if most is None or used is None:
        return float("inf")
    return float(most - max(0, used - _fields(group / "memory.stat").get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    """The number that a file holds; None where it is not there, or holds a word such as "max"."""
    text = _text(path).strip()
    if not text.isdecimal():
        return None
    return int(text)


def _fields(path: Path) -> dict[str, int]:
    """The lines of a file that are a name and a number."""
    fields = {}
    for line in _text(path).splitlines():
        name, number = [*line.split(), "", ""][:2]
        if number.isdecimal():
            fields[name] = int(number)
    return fields


def _text(path: Path) -> str:
    """What a file of the system says; nothing where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
