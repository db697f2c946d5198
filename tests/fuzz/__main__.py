"""Run the cases, show how far it is, and say at the end what failed: exit code 1 if anything did."""

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz.judging import judge
from tests.fuzz.running import KINDS, Result, Task, made, run_all

FAILURES = Path("out") / "fuzz"
NUMBER = re.compile(r"\d+")
SHOWN = 40
"""Failures of which the summary has a line."""


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="NAME,…", help="which kinds of input")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the cases of each kind")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other cases")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--case", metavar="KIND:INDEX", help="try this one again, here, and show its traceback")
    parser.add_argument("--out", type=Path, default=FAILURES, metavar="FOLDER", help="where inputs that fail are kept")
    given = parser.parse_args(arguments)
    given.kinds = given.kinds.split(",")
    if unknown := sorted(set(given.kinds) - set(KINDS)):
        parser.error(f"no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    return given


def tasks_of(kinds: Sequence[str], scale: float) -> list[Task]:
    """The cases of these kinds; at least one of each."""
    tasks: list[Task] = []
    for kind in kinds:
        count = max(1, round(KINDS[kind].count * scale))
        tasks += [(kind, index) for index in range(count)]
    return tasks


def again(seed: int, number: str) -> int:
    """Try one case in this process."""
    kind, _, index = number.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        (place := Path(folder) / f"{kind}-{index}").mkdir()
        case = made(seed, kind, int(index), place)
        print(ascii(case.told))
        outcome = judge(case, KINDS[kind].limit)
    print(f"{outcome.verdict}: {outcome.words!r}\n{outcome.report.encode('utf-8', 'backslashreplace').decode()}")
    print(f"{outcome.seconds:.2f} s, {outcome.memory / 2**20:.0f} MiB")
    return int(outcome.verdict == "failed")


def everything(given: argparse.Namespace, console: Console) -> list[Result]:
    """Try all cases, with a bar for each kind where there is a terminal."""
    shutil.rmtree(given.out, ignore_errors=True)
    tasks = tasks_of(given.kinds, given.scale)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    results = []
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("Trying", total=len(tasks))
        for result in run_all(tasks, seed=given.seed, jobs=given.jobs, failures=given.out):
            results.append(result)
            failed = sum(one.outcome.verdict == "failed" for one in results)
            progress.update(bar, advance=1, description=f"{result.kind}, {failed} failed")
    return results


def table_of(results: Sequence[Result]) -> Table:
    """A row for each kind."""
    table = Table("Kind", *("Cases", "Taken", "Refused", "Failed", "Seconds", "Cases/s", "Most MiB", "Longest s"))
    for kind in KINDS:
        outcomes = [result.outcome for result in results if result.kind == kind]
        if not outcomes:
            continue
        verdicts = [outcome.verdict for outcome in outcomes]
        seconds = sum(outcome.seconds for outcome in outcomes)
        table.add_row(
            kind,
            str(len(outcomes)),
            *(str(verdicts.count(verdict)) for verdict in ("taken", "refused", "failed")),
            f"{seconds:.1f}",
            f"{len(outcomes) / max(seconds, 1e-9):,.1f}",
            f"{max(outcome.memory for outcome in outcomes) / 2**20:,.0f}",
            f"{max(outcome.seconds for outcome in outcomes):.1f}",
        )
    return table


def failures_of(results: Sequence[Result]) -> list[str]:
    """A line for each way in which cases failed, with how often and the first of them."""
    groups: dict[str, list[str]] = {}
    for result in results:
        if result.outcome.verdict == "failed":
            words = result.outcome.words.encode("utf-8", "backslashreplace").decode()
            groups.setdefault(f"{result.kind}: {NUMBER.sub('N', words)}", []).append(f"{result.kind}:{result.index}")
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    lines = [f"{len(cases)} × {words}, such as {', '.join(cases[:3])}" for words, cases in ordered]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"… and {len(lines) - SHOWN} other ways"]
    return lines


def main(arguments: Sequence[str]) -> int:
    given = options(arguments)
    if given.case:
        return again(given.seed, given.case)
    console, begun = Console(width=160, highlight=False), time.monotonic()
    results = everything(given, console)
    console.print(table_of(results))
    lines = failures_of(results)
    for line in lines:
        console.print(escape(line), soft_wrap=True)
    if lines:
        console.print(f"Inputs and tracebacks: {given.out}. One again: python -m tests.fuzz --case KIND:INDEX")
    console.print(f"{len(results)} cases with seed {given.seed} in {time.monotonic() - begun:.0f} s")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
