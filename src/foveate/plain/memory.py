"""The memory that is still available, of the machine and of its container (control groups, version 2).

The system kills a process that exceeds a container's limit without a message, so foveate refuses work that does not
fit. Nothing here may import torch or NumPy.
"""

import os
from pathlib import Path

from foveate.errors import FoveateError, InputError

GIB = 2**30


def check_room(what: str, need: float, advice: str, kind: type[FoveateError] = InputError) -> None:
    """Raise an error if less memory is available than needed.

    Args:
        what: Start of the message: the subject with its size, and the verb "take" or "takes".
        need: Bytes needed.
        advice: What to do instead, as a sentence.
        kind: The class of the error.

    Raises:
        FoveateError: If less memory is available; of class `kind`.
    """
    free = available()
    if need > free:
        sizes = f"{need / GIB:,.1f} GiB of memory, and {max(free, 0) / GIB:,.1f} GiB are available here"
        raise kind(f"{what} about {sizes}. {advice}")


def available() -> float:
    """Return the bytes of memory that this process can still use.

    The smaller of the available memory of the machine and what its container leaves. A system that does not report
    available memory counts with its total; infinite if nothing is known.
    """
    kilobytes = _fields(Path("/proc/meminfo")).get("MemAvailable:")  # available without swapping
    if kilobytes is not None:
        return min(1024.0 * kilobytes, _containers())
    if not hasattr(os, "sysconf"):
        return _containers()
    return min(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), _containers())


def _containers(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Return the bytes left in the tightest control group around this process.

    Args:
        root: Mount point of the groups. A container may see only the root group.
        own: File that names the group of this process, in a line such as `0::/user.slice`.
    """
    path = next((line[3:] for line in _text(own).splitlines() if line.startswith("0::")), "/")
    inside = Path(path.lstrip("/"))
    groups = [root]
    if ".." not in inside.parts:
        groups = [root / inside, *(root / parent for parent in inside.parents)]
    return min(map(_memory_left, groups))


def _memory_left(group: Path) -> float:
    """Return the bytes left of a group's limit. The inactive file cache does not count as used: it can be freed."""
    most, used = _number(group / "memory.max"), _number(group / "memory.current")
    if most is None or used is None:
        return float("inf")
    return float(most - max(0, used - _fields(group / "memory.stat").get("inactive_file", 0)))


def _number(path: Path) -> int | None:
    """Read a number from a file; None if the file is missing or holds a word such as "max"."""
    text = _text(path).strip()
    if not text.isdecimal():
        return None
    return int(text)


def _fields(path: Path) -> dict[str, int]:
    """Read the lines of a file that consist of a name and a number."""
    fields = {}
    for line in _text(path).splitlines():
        name, number = [*line.split(), "", ""][:2]
        if number.isdecimal():
            fields[name] = int(number)
    return fields


def _text(path: Path) -> str:
    """Read a system file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
