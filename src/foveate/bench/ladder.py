"""A ladder: what each step adds to the one before, from the untouched model to fewer tokens and a thinner tower."""

from collections.abc import Sequence
from typing import Any

from foveate.bench.paired import AGAIN, FULL, GRAPH, PairedRun
from foveate.bench.results import ResultRow, ratio_columns, rows_of, speed, speed_up
from foveate.bench.timing import interval_words
from foveate.contract.method import Method
from foveate.naming import parse
from foveate.plain.table import Table, number

METHOD = "vidcom2"
"""The default of the step that drops: it runs behind any tower, and the question does not change its choice."""
THINNER = "thintower+"


def ladder_methods(name: str = METHOD) -> dict[str, Method]:
    """The methods of the two steps that drop: the named one, and the same behind a thinner tower.

    Raises:
        FoveateError: If there is no such method, or it cannot follow ThinTower.
    """
    return {spelled: parse(spelled) for spelled in (name, THINNER + name)}


def ladder_rows(run: PairedRun, methods: Sequence[str]) -> list[ResultRow]:
    """A row for each step: that of its candidate, and the time to the first token over that of the step before.

    Args:
        run: With finished rounds, and with graphs where the device has them.
        methods: Names of candidates with fewer tokens, and with a thinner tower too. Of one that did not run, the row
            has the step and the name alone.
    """
    names = {"untouched": FULL, "untouched again": AGAIN}
    graphs = GRAPH.format(FULL) in run.candidates
    if graphs:
        names["+ CUDA graphs"] = GRAPH.format(FULL)
    for name in sorted(methods, key=lambda name: name.startswith(THINNER)):
        step = "+ thinner tower" if name.startswith(THINNER) else "+ fewer tokens"
        names[step] = GRAPH.format(name) if graphs else name
    rows = {str(row["name"]): row for row in rows_of(run)}
    steps: list[ResultRow] = []
    before = FULL
    for step, name in names.items():
        row: dict[str, Any] = {"step": step, "name": name}
        over = run.ratios(name, before).get("ttft")
        if over is not None:
            row |= rows[name] | ratio_columns("ttft_over_before", over)
            before = before if name == AGAIN else name
        steps.append(row)
    return steps


def ladder_sheet(rows: Sequence[ResultRow], title: str, notes: Sequence[str] = ()) -> Table:
    """The steps as a table of speed-ups; of the untouched model, milliseconds."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if "ttft" not in row:
            lines.append((row["step"], "not measured"))
            continue
        over_before = speed_up(row, "ttft_over_before") if row["step"].startswith("+") else ""
        tokens = number(row["tokens"], ".0f")
        lines.append((row["step"], speed(row, "ttft"), over_before, speed(row, "whole"), tokens))
    rounds = rows[0]["rounds"]
    about = (
        f"{rounds} paired rounds. Speed-ups over the untouched model, and over the step before: the median and its "
        f"{interval_words(rounds)}. Speed alone: foveate eval measures what the answers lose."
    )
    return Table(title, ("", "First token", "over step before", "Call", "Tokens"), lines, (about, *notes))
