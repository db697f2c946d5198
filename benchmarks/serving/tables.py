"""Make the tables of serving.json: every server compared with stock vLLM, by cell.

python benchmarks/serving/tables.py            # write them into README.md, and a part of them into the guide
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from foveate.bench.timing import interval_words, ratio
from foveate.plain.table import Column, Table, between

__all__ = ["AGAIN", "LONG", "PROMPTS", "STOCK", "TEXT", "USUAL", "page", "sheets", "summary"]

HERE = Path(__file__).resolve().parent
PAGE, GUIDE = HERE / "README.md", HERE.parents[1] / "docs/guides/vllm.md"
STOCK, AGAIN = "stock", "stock again"
PROMPTS = {
    "a picture and a question": "as it is",
    "a picture, 500 letters and a question": "with 500 letters in front",
    "text alone": "without its picture",
}
USUAL, LONG, TEXT = PROMPTS
SHOWN = ("1", "8", "32")
"""Numbers of clients in the tables."""
FIGURES = {
    "requests_per_s": "requests/s",
    "ttft_p50": "TTFT p50",
    "ttft_p99": "TTFT p99",
    "tpot_p50": "TPOT p50",
    "tpot_p99": "TPOT p99",
}


def summary(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each setting and cell: ratios to stock in the same round, and the share of right answers."""
    rows = []
    for setting, prompt, clients in dict.fromkeys((one["setting"], one["prompt"], one["clients"]) for one in records):
        if setting == STOCK:
            continue
        runs, base = (_of(records, name, prompt, clients) for name in (setting, STOCK))
        row: dict[str, Any] = {"setting": setting, "prompt": prompt, "clients": clients}
        for figure in FIGURES:
            row[figure] = ratio([one[figure] for one in runs], [one[figure] for one in base]).to_dict()
        rows.append(row | {"right": _right(runs), "stock_right": _right(base)})
    return rows


def _of(records: Sequence[dict[str, Any]], setting: str, prompt: str, clients: int) -> list[dict[str, Any]]:
    cell = (setting, prompt, clients)
    return [one for one in records if (one["setting"], one["prompt"], one["clients"]) == cell]


def _right(runs: Sequence[dict[str, Any]]) -> float | None:
    checked = sum(one["checked"] for one in runs)
    return sum(one["right"] for one in runs) / checked if checked else None


def verdict(throughput: dict[str, Any]) -> str:
    """Tell by the interval if a server handles more requests per second than stock."""
    if throughput["low"] > 1:
        return "yes"
    return "NO, slower" if throughput["high"] < 1 else "not told apart"


def lines(record: dict[str, Any], prompt: str) -> list[tuple[str, ...]]:
    """The lines of a table, one per setting and number of clients."""
    written = []
    for row in record["summary"]:
        if row["prompt"] != prompt:
            continue
        cells = [f"{row[name]['median']:.2f} [{row[name]['low']:.2f}, {row[name]['high']:.2f}]" for name in FIGURES]
        right = "" if row["right"] is None else f"{row['right']:.0%} ({row['stock_right']:.0%})"
        pays = "control" if row["setting"] == AGAIN else verdict(row["requests_per_s"])
        written.append((row["setting"], str(row["clients"]), *cells, right, pays))
    return written


def _prompts(record: dict[str, Any]) -> list[str]:
    """The prompts that were measured."""
    asked = {row["prompt"] for row in record["summary"]}
    return [prompt for prompt in PROMPTS if prompt in asked]


HEADS = ("server", "clients", *FIGURES.values(), "right (stock)", "pays")


def sheets(record: dict[str, Any]) -> list[Table]:
    """A table for each prompt."""
    columns = [Column(head, right=place > 0) for place, head in enumerate(HEADS)]
    return [Table(one, columns, lines(record, one), [caption(record)]) for one in _prompts(record)]


def caption(record: dict[str, Any]) -> str:
    """The tables' caption, with the times of stock vLLM."""
    own = _of(record["cells"], STOCK, USUAL, min(one["clients"] for one in record["cells"]))
    first, each = (1000 * median(one[name] for one in own) for name in ("ttft_p50", "tpot_p50"))
    return (
        f"{record['model']} ({record['device']}; vLLM {record['versions']['vllm']}), answers of {record['new_tokens']} "
        f"tokens. Ratios to stock vLLM in the same round: medians of {record['rounds']} rounds, in brackets the "
        f"{interval_words(record['rounds'])}; requests/s above 1 and times below 1 are better. Stock vLLM with one "
        f"client: TTFT {first:.0f} ms, TPOT {each:.1f} ms."
    )


def page(record: dict[str, Any], prompts: Sequence[str] = (USUAL, LONG), clients: Sequence[str] = SHOWN) -> str:
    """The tables in Markdown. The record also has two clients, and text alone, which gains nothing."""
    written = [caption(record), ""]
    for prompt in _prompts(record):
        if prompt not in prompts:
            continue
        written += [f"**{prompt.capitalize()}**", "", f"| {' | '.join(HEADS)} |", "|---" * len(HEADS) + "|"]
        written += [f"| {' | '.join(cells)} |" for cells in lines(record, prompt) if cells[1] in clients]
        written.append("")
    return "\n".join(written).strip()


def filled(text: str) -> str:
    """The text of README.md with its tables filled in."""
    for name in ("serving", "budgets"):
        text = between(text, name, f"{page(read(name))}\n")
    return text


def guide(text: str) -> str:
    """The guide's text with its table filled in: one prompt and the most clients."""
    return between(text, "serving", f"{page(read('serving'), (USUAL,), SHOWN[-1:])}\n")


def read(name: str) -> dict[str, Any]:
    """A record of this folder."""
    record: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return record


def main() -> None:
    """Write the tables into README.md and into the guide."""
    for path, fill in ((PAGE, filled), (GUIDE, guide)):
        path.write_text(fill(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
