"""Tables of `eval`, `bench`, `compare` and `tune` in files: what is printed, with the numbers of the JSON."""

import csv
import json

import pytest
from PIL import Image

WORDS = ("--prompt", "What is this ?", "--max-new-tokens", 3)


@pytest.fixture
def asked(shallow_llava, tmp_path):
    """The words of a quick run of each command."""
    pictures = []
    for number, colour in enumerate(("red", "green", "blue")):
        pictures.append(tmp_path / f"{number}.png")
        Image.new("RGB", (120, 120), colour).save(pictures[-1])
    samples = tmp_path / "samples.jsonl"
    lines = [{"image": str(path), "question": "What is this ?", "label": "yes"} for path in pictures]
    samples.write_text("\n".join(map(json.dumps, lines)))
    half = ("--model", shallow_llava, "--method", "v2drop", "--retention", 0.5, "--json")
    return {
        "compare": ("compare", pictures[0], *WORDS, "--pairs", 2, *half),
        "bench": ("bench", "--pairs", 2, "--new-tokens", 2, "--no-bare", *half),
        "eval": ("eval", "--samples", samples, "--cache", tmp_path / "cache", "--max-new-tokens", 3, *half),
        "tune": ("tune", *pictures, *WORDS, "--cache", tmp_path / "cache", *half),
    }


@pytest.fixture
def written(run, asked, tmp_path):
    """Runs a command; the tables of its CSV file as dictionaries, and its JSON."""

    def of(command):
        out = tmp_path / "out.csv"
        code, said, err = run(*asked[command], "--out", out)
        assert code == 0, err
        tables = [[]]
        for row in csv.reader(out.read_text(encoding="utf-8").splitlines(keepends=True)):
            if row:
                tables[-1].append(row)
            else:
                tables.append([])
        tables = [table if len(table[0]) > 1 else table[1:] for table in tables]  # without titles
        return [[dict(zip(head, row, strict=True)) for row in rows] for head, *rows in tables], json.loads(said)

    return of


def close(number):
    return pytest.approx(number, rel=1e-12)


def test_compare(written):
    [[full, v2drop]], values = written("compare")
    [method] = values["methods"]
    assert (full["name"], full["Answer"]) == ("full model", values["full"]["answer"])
    assert (v2drop["name"], v2drop["Answer"]) == ("v2drop", method["answer"])
    assert float(v2drop["Retention %"]) == close(100 * method["retention"])
    ratio = values["time"]["ratio_to_full"]["v2drop"]
    ends = [float(v2drop[f"Time ratio{end}"]) for end in ("", " low", " high")]
    assert ends == close([ratio["median"], ratio["low"], ratio["high"]])


def test_eval(written):
    (first, *_), values = written("eval")
    rows = {row["name"]: row for row in values["rows"] if row["task"] is None}
    assert {row["name"] for row in first} == set(rows)
    for shown in first:
        row = rows[shown["name"]]
        assert float(shown["Tokens"]) == close(row["tokens"])
        ends = [float(shown[f"Accuracy{end}"]) for end in ("", " low", " high")]
        assert ends == close([100 * row[f"accuracy{end}"] for end in ("", "_low", "_high")])


def test_what_is_printed_is_what_is_written(run, asked, tmp_path):
    words = [word for word in asked["compare"] if word != "--json"]
    code, said, err = run(*words, "--out", tmp_path / "out.md")
    assert code == 0, err
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    for word in ("full model", "Decoder FLOPs", "v2drop", "In the full model's row, it is timed against itself"):
        assert word in said
        assert word in text
    assert "| --- |" in text
