"""The page on what tuning found: tables from the records, between marks of docs/tuning-found.md.

python benchmarks/tuning/table.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "tuning-found.md"
LITTLE = 0.02
"""A smaller loss is no base for a share."""


def tables(record: dict[str, Any]) -> str:
    """A summary, and V2Drop on more seeds."""
    seeds = ", ".join(map(str, record["seeds"]["held-out"]))
    lines = [
        f"Judged on {record['pictures']} pictures of seeds {seeds}, which nothing was tuned on. [ ] are 95 % intervals "
        "over pictures; differences are paired.",
        "",
        *summary(record["cells"]),
    ]
    lines += further(record["further"])
    return "\n".join(lines)


def summary(cells: list[dict[str, Any]]) -> list[str]:
    """A line for each cell: accuracy by what is tuned."""
    lines = [
        "Right answers, %. *Recovered* is the share of the published schedule's loss against the full model that the "
        "tuned one takes back.",
        "",
        "| method | tokens | full | published | small grid | tuned | recovered | random at tuned | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        rows = {row["name"]: row["accuracy"]["value"] for row in cell["rows"]}
        full = cell["full"]["value"]
        shown = [percent(rows.get(name)) for name in ("published", "small grid", "tuned")]
        gained = recovered(full, rows.get("published"), rows.get("tuned"))
        figures = [percent(full), *shown, gained, percent(rows.get("random at tuned")), f"{cell['minutes']:.0f}"]
        lines.append(f"| {cell['method']} | {cell['budget']} | {' | '.join(figures)} |")
    return [*lines, ""]


def batching(record: dict[str, Any]) -> str:
    """What running pictures as one batch takes, of what running them one by one takes."""
    lines = [
        f"Time of {record['pictures']} pictures with {record['questions']} questions as one batch, over that of one "
        "picture after the other. The control is the latter against itself.",
        "",
        "| setting | threads | one batch | control |",
        "|---|---|---|---|",
    ]
    for row in record["rows"]:
        lines.append(f"| {row['setting']} | {row['threads']} | {ratio(row['together'])} | {ratio(row['control'])} |")
    return "\n".join(lines)


def ratio(times: dict[str, float]) -> str:
    """0.52 [0.49, 0.55]."""
    return f"{times['median']:.2f} [{times['low']:.2f}, {times['high']:.2f}]"


def recovered(full: float, published: float | None, tuned: float | None) -> str:
    """How much of a loss is taken back, in hundredths; nothing where there is little to lose."""
    if published is None or tuned is None or full - published < LITTLE:
        return "–"
    return f"{100 * (tuned - published) / (full - published):.0f} %"


def percent(share: float | None) -> str:
    """In hundredths; a dash where there is none."""
    if share is None:
        return "–"
    return f"{100 * share:.1f}"


def further(found: dict[str, Any]) -> list[str]:
    """V2Drop's settings on more seeds."""
    seeds = ", ".join(map(str, found["seeds"]))
    lines = [
        "## V2Drop on further seeds",
        "",
        f"The same settings on {found['pictures']} pictures of seeds {seeds}, which nobody looked at while the search "
        f"was built. Full model: {interval(found['full'])} on {found['questions']} questions.",
        "",
        "| budget | setting | tokens | accuracy, % | ahead of published | recovered | text, other | scenes, sketches |",
        "|---|---|---|---|---|---|---|---|",
    ]
    published = {row["budget"]: row["accuracy"]["value"] for row in found["rows"] if row["name"] == "published"}
    for row in found["rows"]:
        ahead = interval(row["ahead"], "+") if "ahead" in row else ""
        gained = ""
        if row["name"] != "published":
            gained = recovered(found["full"]["value"], published.get(row["budget"]), row["accuracy"]["value"])
        cells = (row["name"], f"{row['tokens']:.2f}", interval(row["accuracy"]), ahead, gained, *kinds(row))
        lines.append(f"| {row['budget']} | {' | '.join(cells)} |")
    return [*lines, ""]


def searches(record: dict[str, Any]) -> str:
    """What optuna finds, beside what the search of before found, by the pictures of seeds that neither has seen."""
    seeds = ", ".join(map(str, record["held_out"]))
    pictures = record["judged"][0]["pictures"]
    lines = [
        f"Right answers, %, on {pictures} pictures of seeds {seeds}: the mean of what three searches found, "
        "each on pictures of its own. *Ahead* is optuna's minus the other's, paired over pictures.",
        "",
        "| method | tokens | questions | full | small grid | own search | optuna | ahead of own | ahead of grid |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in record["judged"]:
        accuracy, ahead = cell["accuracy"], cell["ahead"]
        shown = [interval(cell["full"]), *(interval(accuracy[by]) for by in ("small grid", "own search", "optuna"))]
        shown += [interval(ahead[by], "+") for by in ("own search", "small grid")]
        lines.append(f"| {cell['method']} | {cell['budget']} | {cell['questions']} | {' | '.join(shown)} |")
    return "\n".join(lines)


def kinds(row: dict[str, Any]) -> tuple[str, str]:
    """Accuracy by kind of question and of picture."""
    shares = [f"{100 * row[name]:.0f}" for name in ("text", "other", "scenes", "sketches")]
    return ", ".join(shares[:2]), ", ".join(shares[2:])


def interval(estimate: dict[str, float], sign: str = "") -> str:
    """95.3 [93.4, 96.9], in hundredths."""
    value, low, high = (100 * estimate[name] for name in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def parts() -> dict[str, str]:
    """What stands between the marks of the page, by their name."""
    found, compared, batches = (
        json.loads((HERE / name).read_text(encoding="utf-8"))
        for name in ("embedded.json", "search.json", "batching.json")
    )
    return {"tables": tables(found), "searches": searches(compared), "batching": batching(batches)}


def marked(name: str, text: str) -> str:
    """A part of the page between its marks."""
    return f"<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->"


def main() -> None:
    """Write the tables into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in parts().items():
        head, rest = page.split(f"<!-- {name}: begin -->")
        _, foot = rest.split(f"<!-- {name}: end -->")
        page = head + marked(name, text) + foot
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
