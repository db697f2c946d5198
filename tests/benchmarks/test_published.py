"""The papers' own numbers: the data is whole, and its page is current."""

import math
import re

import pytest
from benchmarks.published import page

BENCHMARKS = {
    *("gqa", "mmbench_en", "mmbench_cn", "mme", "pope", "scienceqa", "vqav2", "textvqa", "vizwiz", "seedbench"),
    *("mvbench", "videomme", "longvideobench", "mlvu", "egoschema", "refcoco", "docvqa", "chartqa", "ocrbench"),
}
ROWS = [{**row, "paper": paper["paper"]} for paper in page.read("papers") for row in page.read(paper["paper"])]


def test_the_page_is_what_the_data_gives():
    assert page.main(["--check"]) == 0, "run: python benchmarks/published/page.py"


def test_a_stale_or_missing_page_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "PAGE", tmp_path / "published.md")
    assert page.main(["--check"]) == 1
    assert page.main([]) == 0
    assert page.main(["--check"]) == 0
    page.PAGE.write_text(page.PAGE.read_text().replace("1826", "1827"))
    assert page.main(["--check"]) == 1
    assert "page.py" in capsys.readouterr().err


def test_every_file_is_a_paper():
    files = {path.stem for path in page.HERE.glob("*.csv")} - {"papers", "methods"}
    assert files == {paper["paper"] for paper in page.read("papers")}


def test_every_row_says_whose_number_it_is_and_of_what():
    for row in ROWS:
        assert row["method"], row
        assert row["source"], row
        assert row["reported_by"], row
        assert row["metric"], row
        assert row["unit"], row
        assert math.isfinite(float(row["value"])), row
        assert row["benchmark"] in BENCHMARKS | {"average", "efficiency"}, row
        assert bool(row["budget"]) == bool(row["budget_unit"]), row
        assert not row["budget"] or float(row["budget"]) > 0, row


def test_what_is_open_is_said_in_a_note():
    for row in ROWS:
        if row["benchmark"] == "average":
            assert row["suite"] or "not in our notes" in row["note"], row
        if not row["model"]:
            assert row["note"], row


def test_every_method_has_its_budget_explained():
    explained = {method["method"] for method in page.read("methods")}
    assert {row["method"].rstrip("+") for row in ROWS} - page.NOT_A_METHOD == explained


def test_no_number_is_given_twice():
    keys = [tuple(row[k] for k in row if k not in ("value", "note", "suite", "reported_by")) for row in ROWS]
    assert len(set(keys)) == len(keys)


def test_every_number_is_on_the_page():
    shown = re.findall(r"[−\d.]+", page.page())
    assert {row["value"].replace("-", "−") for row in ROWS} <= set(shown) | {value.rstrip(".") for value in shown}


@pytest.mark.parametrize(
    ("paper", "model", "method", "budget"),
    [("v2drop", "LLaVA-1.5-7B", "V2Drop", budget) for budget in ("192", "128", "64")]
    + [("mustdrop", "LLaVA-1.5-7B", "MustDrop", budget) for budget in ("192", "128", "64")]
    + [("mustdrop", "LLaVA-NeXT-7B", "MustDrop", "320")],
)
def test_averages_are_the_mean_of_the_shares(paper, model, method, budget):
    def scores(name, at=None):
        mine = [r for r in ROWS if (r["paper"], r["model"], r["method"], r["variant"]) == (paper, model, name, "")]
        mine = [r for r in mine if at in (None, r["budget"])]
        return {(r["benchmark"], r["metric"]): float(r["value"]) for r in mine if "image" in r["source"]}

    full, found = scores("full model"), scores(method, budget)
    shares = [found[key] / full[key] for key in full if key[1] == "score"]
    assert 100 * sum(shares) / len(shares) == pytest.approx(found["average", "relative"], abs=0.05)
