"""Collect and check records that users share: the results of a short run (`run.py --quick`) on one machine.

    python benchmarks/real/records.py real       # collect a run's cells into real/share.json, and check it
    python benchmarks/real/records.py --check    # check all files of records/; exit code 1 if one is rejected

A record is accepted if it has its controls, measured token counts, and a `foveate check` that passed.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.plain.table import Column, Table

FOLDER = Path(__file__).with_name("records")
FULL, FULL_AGAIN = "full model", "v2drop:retention=1"
CONTROLS = (FULL_AGAIN, "random", "resize")
"""Rows that every benchmark must have; without them its results mean nothing."""
ABOUT = ("commit", "versions", "device")
KEPT = ("name", "budget", "tokens", "retention", "flops", "questions", "pictures", "accuracy", "accuracy_low")
KEPT += ("accuracy_high", "difference", "difference_low", "difference_high", "agreement", "share")
"""The columns kept from a row of an evaluation."""
TIMES = ("name", "retention", "ttft", "tpot", "prefill", "peak_bytes")
NEAR = 0.1
"""Largest allowed deviation of measured tokens from the budget, as a share."""

Values = Mapping[str, Any]


def collect(folder: Path) -> dict[str, Any]:
    """Collect the cells of a run with one model into one record."""
    about = _read(folder / "record.json")
    cells = {
        kind: list(map(_read, sorted(folder.glob(f"{kind}-*.json")))) for kind in ("quality", "speed", "check", "sure")
    }
    tasks = {task: of_task for cell in cells["quality"] for task, of_task in cell["tasks"].items()}
    return {
        **{name: about[name] for name in (*ABOUT, "model", "retention", "limit", "missing")},
        "weights": next((cell["weights"] for cell in cells["sure"]), None),
        "tasks": {
            task: [_only(row, KEPT) for row in of_task["rows"] if row["task"] is None]
            for task, of_task in tasks.items()
        },
        "speed": [_only(row, TIMES) for cell in cells["speed"] for row in cell["rows"]],
        "check": next((_only(cell, ("passed", "rows")) for cell in cells["check"]), None),
        "sure": [row for cell in cells["sure"] for row in cell["rows"]],
    }


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _only(values: Values, names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def faults(record: Values) -> Iterator[str]:
    """Yield the reasons to reject a record, one sentence each."""
    for name in (*ABOUT, "weights"):
        if not record.get(name):
            yield f"It has no {name}."
    models = record.get("model")
    if not isinstance(models, list) or len(models) != 1 or str(models[0]).startswith(("/", ".", "~")):
        yield f"It must name one model, by its hub id; got {models}."
    if not (record.get("check") or {}).get("passed"):
        yield "foveate check did not pass or did not run; run.py --quick runs it."
    tasks = record.get("tasks") or {}
    if not tasks:
        yield "It has no benchmark."
    for task, rows in tasks.items():
        yield from (f"{task}: {fault}" for fault in _row_faults(rows))


def _row_faults(rows: Sequence[Values]) -> Iterator[str]:
    ran = {row["name"]: row for row in rows if row.get("tokens") is not None}
    full = ran.get(FULL)
    if full is None or not full["tokens"] > 0:
        yield "the full model's tokens were not measured."
        return
    for name in CONTROLS:
        if name not in ran:
            yield f"the control {name} is missing."
    for row in rows:
        budget = row.get("budget")
        if budget is None:
            continue
        asked = budget * full["tokens"] if budget <= 1 else budget
        if not row.get("tokens"):
            yield f"{row['name']} has no measured tokens."
        elif abs(row["tokens"] - asked) > NEAR * asked:
            yield f"{row['name']} has a budget of {asked:.1f} tokens but spent {row['tokens']:.1f}."


def table(records: Mapping[str, Values]) -> Table:
    """A table of all records, with a row for each benchmark and method."""
    rows = []
    for name, record in sorted(records.items()):
        for task, rows_of_task in record["tasks"].items():
            for row in rows_of_task:
                if row.get("tokens") is None or row["name"] == FULL:
                    continue
                shown = "full model again" if row["name"] == FULL_AGAIN else row["name"]
                figures = (f"{row['tokens']:.4g}", f"{row['accuracy']:.3f}", f"{100 * row['agreement']:.1f}")
                rows.append((record["model"][0], record["device"], task, shown, *figures, name))
    heads = [Column(head, right=True) for head in ("Tokens", "Score", "Agrees, %")]
    return Table("", ["Model", "Device", "Benchmark", "", *heads, "Record"], rows)


def stored() -> dict[str, Values]:
    """The stored records, by file name without its ending."""
    return {path.stem: _read(path) for path in sorted(FOLDER.glob("*.json"))}


def main(arguments: Sequence[str]) -> int:
    """Check the stored records, or collect and check a run. Returns 1 if a record is rejected."""
    if arguments and arguments[0] == "--check":
        records = stored()
    else:
        folder = Path(arguments[0] if arguments else "real")
        records = {"share": collect(folder)}
        (folder / "share.json").write_text(json.dumps(records["share"], indent=1) + "\n", encoding="utf-8")
        print(f"The record: {folder / 'share.json'}")
    refused = {name: list(faults(record)) for name, record in records.items()}
    for name, why in refused.items():
        for fault in why:
            print(f"{name} is refused. {fault}", file=sys.stderr)
    return int(any(refused.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
