"""A run: items go to a crew, rows come back; what its process dies at is asked alone, and then given up."""

from collections.abc import Callable, Iterable
from typing import Any

from foveate.errors import InputError
from foveate.runs.crew import DEATHS, Crew, Stopped

Rows = list[Any]


def _refuse(item: object) -> Rows:
    raise InputError(
        "A process died at what it was asked, and another one too, perhaps for want of memory. Run again with "
        "--workers 1: what is on the disk is not asked again."
    )


def work_through(
    items: Iterable[object],
    crew: Crew,
    take: Callable[[Rows], object],
    *,
    alone: Callable[[Any], Iterable[object]] = lambda item: [item],
    given_up: Callable[[Any], Rows] = _refuse,
    stopped: Stopped = lambda: False,
) -> None:
    """Let a crew work on items, and take their rows as they come.

    Args:
        items: What is worked on.
        crew: Who works; its context is open.
        take: Keeps rows.
        alone: The smaller items that an item is made of, each of which is asked by itself where a process has died;
            the item itself where it is of one piece.
        given_up: The rows of such a smaller item at which a process has died again; a refusal where it has none.
        stopped: Says that the run shall end behind what is in hand.

    Raises:
        InputError: If processes die whatever they are asked, or at an item that has no rows without a result.
    """
    died = []
    answered = False
    for item, rows in crew.work(items, stopped):
        if rows is None:
            died.append(item)
            continue
        take(rows)
        answered = True
    if not died or stopped():
        return
    lost: Rows = []
    for part, rows in crew.work((part for item in died for part in alone(item)), stopped):
        if rows is None:
            lost += given_up(part)
            continue
        take(rows)
        answered = True
    if not answered and len(lost) > DEATHS:
        raise InputError("Processes die whatever they are asked. See what they lack, and run again.")
    if lost:
        take(lost)
