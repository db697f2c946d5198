"""Write the papers' own numbers from the tables in this folder: all into README.md, averages into docs/published.md.

python benchmarks/published/page.py            write both pages
python benchmarks/published/page.py --check    exit with code 1 if a page differs from the tables

Each paper has a file. `papers.csv` lists the papers, and `methods.csv` says what a budget means for each method. A row
is one number: `source` is the table or figure of the paper, `reported_by` the paper that prints the number, and
`budget` the budget as stated there. Several notes in one field are separated by ` | `.
"""

import argparse
import csv
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE, SHORT = HERE / "README.md", HERE.parents[1] / "docs" / "published.md"

Row = dict[str, str]

HEADS = {
    "gqa": "GQA",
    "mmbench_en": "MMBench",
    "mmbench_cn": "MMBench-CN",
    "mme": "MME",
    "pope": "POPE",
    "scienceqa": "ScienceQA",
    "vqav2": "VQAv2",
    "textvqa": "TextVQA",
    "vizwiz": "VizWiz",
    "ocrbench": "OCRBench",
    "mvbench": "MVBench",
    "videomme": "VideoMME",
    "longvideobench": "LongVideoBench",
    "mlvu": "MLVU",
    "egoschema": "EgoSchema",
    "average": "average",
}
BUDGETS = {"tokens": "{} tokens", "% kept": "{} %", "% dropped": "{} % dropped", "% entering": "{} % enter", "": "–"}
MODELS = {
    "LLaVA": "LLaVA, version and size not in our notes",
    "LLaVA-NeXT": "LLaVA-NeXT, size not in our notes",
    "": "Model not in our notes",
}
UNLISTED = ("Our notes do not say which benchmarks are averaged.", " (not listed in our notes)")
"""What the page says once for all tables."""
NOT_A_METHOD = {"full model", "Random", "Resize"}  # no authors, so no dagger

INTRO = """\
# Published numbers: the papers', not ours

<!-- Written by page.py from the tables beside it; change those. -->

The numbers come from our notes on the papers, one CSV file each.

- **†** marks a number that the method's own authors did not report.
- Scores are in %. Only MME and OCRBench are in points. MMBench is the English one.
- **% of full** is the score as a share of the full model's in the same table. An average is the mean of such shares.
- Where a cell is empty or a table names no benchmarks, our notes do not say.

## What a budget means

[The documentation](../../docs/published.md#what-a-budget-means) has the three meanings.
"""

SHORT_INTRO = """\
---
search:
  boost: 0.5
---

# Published numbers: the papers', not ours

<!-- Written by benchmarks/published/page.py from the tables beside it; change those. -->

!!! warning "Nothing on this page was measured here"
    foveate has reproduced none of these numbers. Compare one with ours only if model, prompt, task and budget are the
    same.

Averages from papers that compare several methods. `benchmarks/published/README.md` has the other numbers, the papers
and our notes on them.

- **% of full** is the score as a share of the full model's in the same table, averaged over benchmarks. Benchmarks and
  full models differ, so compare only within one table.
- **†** marks a number that the method's own authors did not report.

## What a budget means

"192 tokens" has three meanings, and papers mix them in one table:

"""
MEANINGS = {
    "mean": "the **mean** over all decoder layers, as in foveate",
    "after": "the tokens left **after** the cut",
    "entering": "the tokens **entering** the decoder",
}


def read(name: str) -> list[Row]:
    """The rows of a table in this folder."""
    with (HERE / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def unique(values: list[str]) -> list[str]:
    """The distinct non-empty values, in order."""
    return [value for value in dict.fromkeys(values) if value]


def notes(row: Row) -> list[str]:
    """The notes on a number, a paper or a method."""
    return unique([note for note in row["note"].split(" | ") if note not in UNLISTED])


def method(row: Row) -> str:
    """Row label: the method, a dagger if others report the number, and the variant."""
    name = row["method"]
    foreign = name not in NOT_A_METHOD and name.rstrip("+") != row["reported_by"]
    return name + " †" * foreign + (f", {row['variant']}" if row["variant"] else "")


def budget(row: Row) -> str:
    """The label of a budget, for a row or a column."""
    return BUDGETS[row["budget_unit"]].format(row["budget"])


def column(row: Row) -> str:
    """Column label: benchmark or quantity, with its unit unless it is the usual one."""
    unit = row["unit"].replace("x full", "× full")
    if row["benchmark"] == "efficiency":
        return f"{row['metric']}, {unit}"
    tail = {"score": "", "relative": f", {unit}"}.get(row["metric"], f", {row['metric']}")
    return HEADS[row["benchmark"]] + tail


def grid(head: list[str], body: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]


def table(rows: list[Row]) -> list[str]:
    """A paper's table: a row per method; a column per benchmark, or per budget if there is only one benchmark."""
    aside = [row for row in rows if all(r["method"] == "full model" for r in rows if column(r) == column(row))]
    caption = [f"The full model has a {row['metric']} of {row['value']} ({budget(row)})." for row in aside]
    source, suites = rows[0]["source"], unique([row["suite"].replace(UNLISTED[1], "") for row in rows])
    rows = [row for row in rows if row not in aside]
    one = len({column(row) for row in rows}) == 1
    over = "".join(f" over {', '.join(HEADS.get(word, word) for word in suite.split(', '))}" for suite in suites)
    what = (
        column(rows[0]).replace("average,", f"average{over};" if over else "average,")
        if one
        else f"average{over}"
        if over
        else ""
    )
    caption.insert(0, f"{what[0].upper()}{what[1:]}." if what else "")

    stated = any(row["budget"] for row in rows)
    across = one and stated
    heads = unique([budget(row) if across else column(row) for row in rows])
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        label = (method(row), budget(row)) if stated and not across else (method(row),)
        head = budget(row) if across else column(row)
        if lines.setdefault(label, {}).setdefault(head, row) is not row:
            raise ValueError(f"{source}: two numbers for {', '.join(label)}, {head}.")

    everywhere = [note for note in notes(rows[0]) if all(note in notes(row) for row in rows)]
    numbered = [note for note in unique([note for row in rows for note in notes(row)]) if note not in everywhere]

    def marks(found: list[str]) -> str:
        numbers = [str(numbered.index(note) + 1) for note in found if note in numbered]
        return f" <sup>{', '.join(numbers)}</sup>" if numbers else ""

    body = []
    for label, cells in lines.items():
        shared = [note for note in numbered if all(note in notes(row) for row in cells.values())]
        line = [label[0] + marks(shared), *label[1:]]
        for head in heads:
            row = cells.get(head)
            own = [note for note in notes(row) if note not in shared] if row else []
            line.append(row["value"].replace("-", "−") + marks(own) if row else "")
        body.append(line)
    foot = [f"{number}. {note}" for number, note in enumerate(numbered, 1)]
    said = " ".join(unique([f"**{source}.**", *caption, *everywhere]))
    if across and len(body) == len(heads) == 1:
        ((name, value),) = body
        return [f"{said} {name} at {heads[0]}: {value}.", "", *foot, *[""] * bool(foot)]
    first = ["method", "budget"] if stated and not across else ["method"]
    return [said, "", *grid([*first, *heads], body), "", *foot, *[""] * bool(foot)]


def meanings() -> list[str]:
    """A line for each meaning of a budget, with its methods."""
    found = read("methods")
    named = {kind: ", ".join(one["method"] for one in found if one["budget"] == kind) for kind in MEANINGS}
    return [f"- {words}: {named[kind]}" for kind, words in MEANINGS.items()]


def compared(rows: list[Row]) -> list[Row]:
    """The averages among the rows of a source, if it compares several methods. Else none."""
    averages = [row for row in rows if row["benchmark"] == "average" and row["value"] != "100"]
    return averages if len({row["method"] for row in averages} - NOT_A_METHOD) > 1 else []


def short() -> str:
    """The text of the page in the documentation: the averages of each model."""
    rows = [row for paper in read("papers") for row in read(paper["paper"])]
    text = [SHORT_INTRO + "\n".join(meanings()), ""]
    for model in unique([row["model"] for row in rows]):
        mine = [row for row in rows if row["model"] == model]
        sources = [
            compared([row for row in mine if row["source"] == name]) for name in unique([r["source"] for r in mine])
        ]
        if any(sources):
            text += [f"## {MODELS.get(model, model)}", ""]
        for source in sources:
            text += table(source) if source else []
    return "\n".join(text).rstrip() + "\n"


def page() -> str:
    """The text of README.md: all numbers."""
    papers = read("papers")
    rows = {paper["paper"]: read(paper["paper"]) for paper in papers}
    body = [[m["method"], m["venue"], m["budget"], m["note"]] for m in read("methods")]
    text = [INTRO, *grid(["method", "venue", "a budget is", "note"], body), "", "## The papers", ""]
    for paper in papers:
        if not (paper["title"] or paper["note"]):
            continue
        parts = [paper["authors"], f"*{paper['title']}*" if paper["title"] else ""]
        link = f"[arXiv:{paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']})" if paper["arxiv"] else ""
        cited = ", ".join(unique([*parts, link]))
        name = paper["method"] or "Papers not named"
        text += [f"- **{name}**{': ' if cited else ''}{cited}", *(f"    - {note}" for note in notes(paper))]
    text.append("")
    models = unique([row["model"] for part in rows.values() for row in part])
    for model in [*models, ""]:
        text += [f"## {MODELS.get(model, model)}", ""]
        for paper in papers:
            mine = [row for row in rows[paper["paper"]] if row["model"] == model]
            if mine:
                text += [f"### {paper['method'] or 'Papers not named'}", ""]
            for source in unique([row["source"] for row in mine]):
                text += table([row for row in mine if row["source"] == source])
    return "\n".join(text).rstrip() + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(
        description="Write the papers' own numbers from the tables in benchmarks/published."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check, stale = parser.parse_args(arguments).check, False
    for path, text in ((PAGE, page()), (SHORT, short())):
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is out of date: run python benchmarks/published/page.py", file=sys.stderr)
            stale = True
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
