"""Write the page of a run of `run.py`: a table for each model and budget, from the results of its cells.

python benchmarks/real/page.py real                 # writes real/page.md
"""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate.plain.table import Column, Table

PUBLISHED = Path(__file__).resolve().parents[1] / "published"
FULL, FULL_AGAIN = "full model", "v2drop:retention=1"
"""The full model, and the method that keeps all tokens: the full model again."""
CONTROLS = ("random", "resize", "averagepool")
TIMED = {FULL: "untouched", FULL_AGAIN: "untouched again"}
"""The names of these rows in `foveate bench`."""
STOCK_AGAIN = "stock again"
"""The name of the second stock server in the serving benchmark."""
NONE = "–"
MS, GIB = 1000, 2**30
BATCH = 8
"""Batch size in the cells that time batches."""
NEAR = 0.02

Row = Mapping[str, Any]
Tasks = dict[str, dict[tuple[str, float | None], Row]]


def write(folder: Path) -> Path:
    """Write `page.md` into the folder of a run and return its path."""
    record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    (folder / "page.md").write_text("\n".join(_page(record, folder)) + "\n", encoding="utf-8")
    return folder / "page.md"


def _page(record: Mapping[str, Any], folder: Path) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    limit = "" if record["limit"] is None else f" Only the first {record['limit']} documents of each benchmark."
    lines = ["# Real checkpoints", "", f"{record['device']}; {versions}; foveate at {record['commit']}.{limit}", ""]
    for model in record["model"]:
        tasks = _tasks(_results(folder, "quality", model))
        cells = {kind: _results(folder, kind, model) for kind in ("speed", "batch", "serving")}
        lines += [f"## {model}", ""]
        lines += [f"{_conditions(speed)}\n" for speed in cells["speed"]]
        for budget in record["retention"]:
            lines += [f"Budget: {budget:.1%} of the vision tokens, as a mean over the decoder's layers:", ""]
            lines += [_table(record, budget, tasks, cells).to_markdown(), ""]
        beside = _beside_published(model, record["retention"], tasks)
        lines += [beside.to_markdown(), ""] if beside.rows else []
    lines += ["## Missing", ""]
    return lines + ([f"- {name}: {why}" for name, why in record["missing"].items()] or ["Nothing."]) + ["", NOTES]


NOTES = """\
Scores: in brackets, the 95 % interval of the difference from the full model, paired over pictures. Of full: mean ratio
to the full model's scores. Hard: accuracy on questions that the full model answers correctly and Resize does not.
Context: time to open and close it, ms. TTFT, TPOT: median time inside an open context, ms. Clients: requests per second
through vLLM, relative to stock vLLM. Peak: without weights. Scoring: the prefill's time minus random's, ms."""


def _results(folder: Path, kind: str, model: str) -> list[Any]:
    start = f"{kind}-{model.replace('/', '--')}"
    files = sorted(file for file in folder.glob("*.json") if file.stem == start or file.stem.startswith(f"{start}-"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _conditions(speed: Mapping[str, Any]) -> str:
    model = speed["model"]
    return (
        f"Times on {speed['machine']['chip']}: {model['weights']} weights, {model['dtype']}, {model['attention']}; "
        f"{sum(speed['vision_tokens'])} vision and {speed['text_tokens']} text tokens, answers of "
        f"{speed['new_tokens']}, {speed['rounds']} rounds."
    )


def _tasks(quality: Sequence[Mapping[str, Any]]) -> Tasks:
    """For each task, the rows over all questions, by name and budget."""
    tasks = [(task, of_task["rows"]) for result in quality for task, of_task in result["tasks"].items()]
    return {task: {(row["name"], row["budget"]): row for row in rows if row["task"] is None} for task, rows in tasks}


def _table(record: Mapping[str, Any], budget: float, tasks: Tasks, cells: Mapping[str, Sequence[Any]]) -> Table:
    clients = sorted({row["clients"] for serving in cells["serving"] for row in serving["summary"]})
    heads = ["Tokens", *tasks, "Of full", "Hard (n)", "Agrees", "Context", "TTFT", f"TTFT of {BATCH}", "TPOT"]
    heads += [f"Clients: {count}" for count in clients] + ["Peak GiB", "Scoring"]
    rows = []
    for name in (FULL, FULL_AGAIN, *CONTROLS, *record["method"]):
        own = None if name in (FULL, FULL_AGAIN) else budget
        of_method = [of_task.get((name, own)) for of_task in tasks.values()]
        context, first, each, *memory = _speed(name, budget, cells["speed"])
        of_batch = _speed(name, budget, cells["batch"])[1]
        served = [_served(name, budget, count, cells["serving"]) for count in clients]
        shown = "full model again" if name == FULL_AGAIN else name
        rows.append((shown, *_quality(of_method), context, first, of_batch, each, *served, *memory))
    return Table("", ["", *(Column(head, right=True) for head in heads)], rows)


def _quality(found: Sequence[Row | None]) -> list[str]:
    """The cells of quality: tokens, the score on each benchmark, the mean ratio, hard questions and agreement."""
    known = [row for row in found if row is not None]
    compared = [row for row in known if row.get("agreement") is not None]
    hard = [row for row in compared if row["hard"] is not None]
    count = sum(row["hard_questions"] for row in hard)
    shares = [row["share"] for row in compared if row["share"] is not None]
    return [
        f"{fmean(row['tokens'] for row in known):.4g}" if known else NONE,
        *map(_score, found),
        f"{fmean(shares):.1%}" if shares else NONE,
        f"{sum(row['hard'] * row['hard_questions'] for row in hard) / count:.1%} ({count})" if count else NONE,
        f"{fmean(row['agreement'] for row in compared):.1%}" if compared else NONE,
    ]


def _score(row: Row | None) -> str:
    if row is None:
        return NONE
    unit = 100 if abs(row["accuracy"]) <= 1 else 1
    if row.get("difference") is None:
        return f"{unit * row['accuracy']:.1f}"
    low, high = (unit * row[f"difference_{end}"] for end in ("low", "high"))
    return f"{unit * row['accuracy']:.1f} [{low:+z.1f}, {high:+z.1f}]"


def _speed(name: str, budget: float, speeds: Sequence[Any]) -> list[str]:
    """The cells of speed: context, TTFT, TPOT, peak and scoring."""
    rows = {row["name"]: row for speed in speeds for row in speed["rows"]}
    alike = [row for row in rows.values() if row["name"].rpartition(" ")[0] == name]
    nearest = min(alike, key=lambda row: abs(row["retention"] - budget), default=None)
    row = rows.get(TIMED.get(name, ""), nearest)
    if row is None:
        return [NONE] * 5
    control = rows.get(row["control"] or "")
    scoring = f"{MS * (row['prefill'] - control['prefill']):.1f}" if control else NONE
    each = f"{MS * row['tpot']:.1f}" if "tpot" in row else NONE
    peak = f"{row['peak_bytes'] / GIB:.3g}" if row.get("peak_bytes") is not None else NONE
    context = f"{MS * row['context']:.2f}" if "context" in row else NONE
    return [context, f"{MS * row['ttft']:.1f}", each, peak, scoring]


def _served(name: str, budget: float, clients: int, servings: Sequence[Any]) -> str:
    """Requests per second relative to stock vLLM."""
    setting = STOCK_AGAIN if name == FULL_AGAIN else name
    for serving in servings:
        for row in serving["summary"]:
            rate = (serving["settings"][row["setting"]] or {}).get("retention", budget)
            if (row["setting"], row["clients"], rate) == (setting, clients, budget):
                ratio = row["requests_per_s"]
                return f"{ratio['median']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return "1" if name == FULL and servings else NONE


# -- the papers' own numbers --------------------------------------------------------------------------------------


def _beside_published(model: str, budgets: Sequence[float], tasks: Tasks) -> Table:
    """A table of published and our own results at these budgets, each as a share of its own full model."""
    rows = []
    for file in sorted(PUBLISHED.glob("*.csv")):
        with file.open(encoding="utf-8", newline="") as lines:
            printed = [row for row in csv.DictReader(lines) if _is_same(row.get("model") or "", model)]
        full = {row["benchmark"]: row for row in printed if row["method"] == FULL}
        for row in printed:
            ours = _ours(row, full, budgets, tasks)
            if ours is not None:
                theirs = float(row["value"]) / float(full[row["benchmark"]]["value"])
                shares = (f"{theirs:.1%}", f"{ours:.1%}", f"{100 * (ours - theirs):+z.1f}")
                rows.append((row["method"], row["benchmark"], row["budget"], *shares, row["reported_by"]))
    heads = ("Method", "Benchmark", "Budget", "Printed, of full", "Here", "Points apart", "Printed by")
    return Table("", heads, rows)


def _ours(row: Row, full: Mapping[str, Row], budgets: Sequence[float], tasks: Tasks) -> float | None:
    """Our share of the full model's score for a published row. None if we have no such result.

    Args:
        row: The published row.
        full: The published rows of the full model, by benchmark.
        budgets: Our budgets.
        tasks: Our rows.
    """
    if row["budget_unit"] != "tokens" or row["variant"] or row["method"] == FULL or row["benchmark"] not in full:
        return None
    share = float(row["budget"]) / float(full[row["benchmark"]]["budget"])
    near = [budget for budget in budgets if abs(budget - share) < NEAR * share]
    alike = [rows for task, rows in tasks.items() if task.split("_")[0] == row["benchmark"].split("_")[0]]
    shares = (rows.get((row["method"].lower(), budget), {}).get("share") for rows in alike for budget in near)
    return next((float(one) for one in shares if one is not None), None)


def _is_same(printed: str, model: str) -> bool:
    """True if a published name means this checkpoint: "LLaVA-1.5-7B" is llava-hf/llava-1.5-7b-hf."""
    plain = ["".join(filter(str.isalnum, name.lower())) for name in (printed, model.rpartition("/")[2])]
    return bool(plain[0]) and plain[1].startswith(plain[0])


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
