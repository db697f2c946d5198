"""How much memory may still be taken: of the machine, of the container around it, and of the process.

Refusing what does not fit beats being killed: the system ends a process that goes over a container's limit without a
word. Nothing here may import torch or NumPy.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from foveate.errors import FoveateError, InputError

__all__ = ["available", "check_room"]

GIB = 2**30
ENDLESS = 2**60  # control groups of version 1 write a limit that nobody set as a number of about this size


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
    return min(_machine(), _containers(), _process())


def _size(count: float) -> str:
    """8.2 GiB, or 120 MiB."""
    if count < GIB:
        return f"{max(count, 0) / 2**20:.0f} MiB"
    return f"{count / GIB:,.1f} GiB"


def _machine() -> float:
    """What the machine can give without swapping; where it does not say, all that it has."""
    kilobytes = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    if kilobytes is not None:
        return 1024.0 * kilobytes
    if not hasattr(os, "sysconf"):
        return float("inf")
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _process() -> float:
    """What `ulimit -v` leaves of the process's addresses."""
    try:
        import resource
    except ImportError:  # Windows
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    pages = _text(Path("/proc/self/statm")).split()
    used = 0
    if pages:
        used = int(pages[0]) * os.sysconf("SC_PAGE_SIZE")
    return float(limit - used)


def _containers(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """What the tightest control group around this process leaves.

    Args:
        root: Where the groups are mounted.
        own: Which groups this process is in: a line such as `0::/user.slice` (version 2) or `4:memory:/docker/1a2b`.
    """
    free = float("inf")
    for line in _text(own).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            for group in _upwards(root, path):
                free = min(free, _left(group, "memory.max", "memory.current", "inactive_file"))
        elif "memory" in controllers.split(","):
            for group in _upwards(root / "memory", path):
                free = min(free, _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return free


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """A group and those around it, up to the root. Inside a container, only the root may be there."""
    inside = Path(path.lstrip("/"))
    if ".." not in inside.parts:
        yield root / inside
        yield from (root / parent for parent in inside.parents)
    else:
        yield root


def _left(group: Path, limit: str, usage: str, cached: str) -> float:
    """What is left of a group's limit; files that are held in memory only for speed make room when it is needed."""
    most, used = _number(group / limit), _number(group / usage)
    if most is None or used is None or most >= ENDLESS:
        return float("inf")
    return float(most - max(0, used - _fields(group / "memory.stat").get(cached, 0)))


def _number(path: Path) -> int | None:
    """The number that a file holds; None where it is not there, or holds a word such as "max"."""
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


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
