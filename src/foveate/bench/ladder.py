"""Rows and table of a ladder: the speed-up that each step adds, from the untouched model to a thinner tower."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from foveate.bench.paired import AGAIN, CAST, FULL, GRAPH, PairedRun
from foveate.bench.results import ResultRow, ratio_columns, speed, speed_up
from foveate.bench.timing import interval_words
from foveate.contract.method import Method
from foveate.naming import parse
from foveate.plain.table import Table, number

METHOD = "vidcom2"
"""Default method of the step that drops: it works with any tower and does not depend on the question."""
THINNER = "thintower+"
FEWER = "+ fewer tokens"


def ladder_methods(name: str = METHOD) -> dict[str, Method]:
    """The methods of the two steps that drop: the named one, and this one behind a thinner tower.

    Raises:
        FoveateError: If there is no such method, or it cannot follow ThinTower.
    """
    return {spelled: parse(spelled) for spelled in (name, THINNER + name)}


def ladder_rows(run: PairedRun, rows: Sequence[ResultRow], methods: Sequence[str]) -> list[ResultRow]:
    """A row for each step: that of its candidate, and its time to the first token relative to the step before.

    The row of a candidate that did not run has only the step and the name.

    Args:
        run: A run with finished rounds; its graphs are used if it has them.
        rows: The run's rows; see `rows_of`.
        methods: Names of the candidates of the two steps that drop.
    """
    names = {"untouched": FULL, "untouched again": AGAIN}
    if run.recast is not None:
        dtype = str(run.recast.dtype).removeprefix("torch.")
        names[f"+ {dtype}"] = CAST.format(dtype)
    graphs = GRAPH.format(FULL) in run.candidates
    if graphs:
        names["+ CUDA graphs"] = GRAPH.format(FULL)
    for name in sorted(methods, key=lambda name: name.startswith(THINNER)):
        step = "+ thinner tower" if name.startswith(THINNER) else FEWER
        names[step] = GRAPH.format(name) if graphs else name
    by_name = {row["name"]: row for row in rows}
    steps: list[ResultRow] = []
    before = FULL
    for step, name in names.items():
        row: dict[str, Any] = {"step": step, "name": name}
        over = run.ratios(name, before).get("ttft")
        if over is not None:
            row |= {**by_name[name], **ratio_columns("ttft_over_before", over)}
            before = before if name == AGAIN else name
        steps.append(row)
    return steps


def fewer_over_before(rows: Sequence[ResultRow]) -> dict[str, str]:
    """The name of the candidate that first drops, and of the one before it, as `no_gains` takes them."""
    measured = [row for row in rows if "ttft" in row and row["name"] != AGAIN]
    return {row["name"]: before["name"] for before, row in pairwise(measured) if row["step"] == FEWER}


def ladder_sheet(rows: Sequence[ResultRow], title: str, notes: Sequence[str] = ()) -> Table:
    """The steps as a table of speed-ups; the untouched model's row has milliseconds."""
    lines: list[tuple[str, ...]] = []
    for row in rows:
        if "ttft" not in row:
            lines.append((row["step"], "not measured"))
            continue
        over_before = speed_up(row, "ttft_over_before") if row["step"].startswith("+") else ""
        tokens = number(row["tokens"], ".0f")
        lines.append((row["step"], speed(row, "ttft"), over_before, speed(row, "whole"), tokens, row["dtype"]))
    rounds = rows[0]["rounds"]
    about = (
        f"{rounds} paired rounds. Speed-ups over the untouched model, and over the step before: the median and its "
        f"{interval_words(rounds)}. Each is a median of ratios within a round, so “over step before” is not exactly "
        "the quotient of two speed-ups. Speed alone: foveate eval measures what the answers lose."
    )
    heads = ["", "First token", "over step before", "Call", "Tokens", "Weights"]
    dtypes = {row["dtype"] for row in rows if "dtype" in row}
    if len(dtypes) == 1:  # the title says it
        heads.pop()
        lines = [line[:5] for line in lines]
    return Table(title, heads, lines, (about, *notes))
