"""`foveate bench --methods`: methods beside random dropping of as many tokens, at each batch size, in one table."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from foveate.cli.usage import UsageError
from foveate.errors import InputError

if TYPE_CHECKING:
    from foveate._sheet import Sheet
    from foveate.bench.run import Session
    from foveate.bench.subject import Subject
    from foveate.contract.method import Method

__all__ = ["ALL", "BATCHES", "NEW_TOKENS", "measure", "names_of"]

ALL = "all"
BATCHES = (1, 8)
NEW_TOKENS = 1
"""Length of an answer: what is compared ends with its first token."""
LEAST = 2  # rounds that a ratio needs


def names_of(text: str) -> tuple[str, ...]:
    """The names of `--methods`: one, or several with commas between them.

    Raises:
        UsageError: If one is empty or named twice, has settings, or stands beside `all`.
    """
    names = tuple(name.strip() for name in text.split(","))
    if "" in names:
        raise UsageError(f"--methods {text!r}: names with commas between them, or all.")
    if any(":" in name for name in names):
        raise UsageError(f"--methods {text}: names only; settings go with --method NAME:KEY=VALUE.")
    if len(set(names)) < len(names):
        raise UsageError(f"--methods {text}: the same name is given twice.")
    if ALL in names and len(names) > 1:
        raise UsageError(f"--methods {text}: all stands for every method, so it stands alone.")
    return names


def measure(
    subject: "Subject",
    methods: "dict[str, Method]",
    record: dict[str, Any],
    title: str,
    left_out: dict[str, str],
    *,
    batches: Sequence[int],
    new_tokens: int,
    pairs: int,
    seed: int,
    clock: str,
) -> "tuple[list[Sheet], BaseException | None]":
    """Time the methods at each batch size, and fill in the record.

    Args:
        subject: With a batch of one.
        methods: By the names of their rows.
        record: What the JSON will have.
        title: Of the table.
        left_out: Why others are not compared, by name; those that do not run here are added.
        batches: Samples a run.
        new_tokens: Length of every answer.
        pairs: Rounds.
        seed: Of the order.
        clock: "wall" or "cpu".

    Returns:
        The table; and what stopped the run, if anything did. Batches with two finished rounds are in it.
    """
    from foveate.bench.overhead import CONTROL, Overheads, overhead_sheet
    from foveate.bench.run import Session
    from foveate.bench.stopwatch import clock_of
    from foveate.cli.screen import note

    results: list[Overheads] = []
    stopped: BaseException | None = None
    for batch in batches:
        workload = subject.workload.repeated(batch)
        session = Session(subject.model, workload, new_tokens, clock_of(clock))
        stopped = _time(session, methods, left_out, pairs, seed)
        if session.finished >= LEAST:
            results.append(Overheads.of(session))
        if stopped is not None:
            break
    for result in results:
        if result.noisy:
            note(
                f"warning: the machine is noisy: at batch {result.batch} random dropping differs from itself "
                f"({CONTROL}). Distrust differences of that size; run more --pairs on a quiet machine."
            )
    if not any(result.rows for result in results):
        if stopped is not None:
            note("too few rounds were finished for a ratio, so nothing is written.")
            raise stopped
        raise InputError("No method could be compared. " + " ".join(f"{name}: {why}" for name, why in left_out.items()))
    record |= {"batches": [result.to_dict() for result in results], "left_out": left_out}
    notes = [f"{name}: left out: {why}" for name, why in left_out.items()]
    return [overhead_sheet(results, title, notes)], stopped


def _time(
    session: "Session", methods: "dict[str, Method]", left_out: dict[str, str], pairs: int, seed: int
) -> BaseException | None:
    """Run all rounds of one batch size; what stopped it, if anything did."""
    from foveate.bench.overhead import prepare
    from foveate.cli.screen import counted, counting

    batch = session.workload.batch
    try:
        with counted("Measuring memory", None) as progress:
            describe = partial(progress.update, progress.task_ids[0])
            here = prepare(session, methods, lambda name: describe(description=f"Batch {batch}: trying {name}"))
        for name, why in here.items():
            if left_out.setdefault(name, why) != why:
                left_out[name] += f" At batch {batch}: {why}"
        with counting(f"Batch {batch}: timing {len(session.candidates)} rows, in rounds", pairs + 1) as step:
            for _ in session.run(pairs, seed, partial(step, 1)):
                pass
    except (KeyboardInterrupt, InputError) as error:
        return error
    return None
