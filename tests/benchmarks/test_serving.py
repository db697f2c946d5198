"""What dropping is worth in a server: the guide says what the record says, and the record follows from its cells."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "serving"


@pytest.fixture(scope="module")
def tables():
    return runpy.run_path(str(FOLDER / "tables.py"))


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "serving.json").read_text(encoding="utf-8"))


def test_the_guide_says_what_the_committed_record_says(tables):
    guide = (ROOT / "docs/guides/vllm.md").read_text(encoding="utf-8")
    assert tables["filled"](guide) == guide


def test_the_summary_follows_from_the_cells(tables, record):
    assert tables["summary"](record["cells"]) == record["summary"]


def test_a_ratio_is_of_a_round_and_says_whether_dropping_pays(tables):
    cells = []
    for number in range(6):
        for setting, speed in (("stock", 10.0), ("fast", 20.0 + number), ("slow", 5.0), ("like", 9.0 + number / 2)):
            figures = {"requests_per_s": speed, "ttft_p50": 1.0, "ttft_p99": 1.0, "tpot_p50": 1.0, "tpot_p99": 1.0}
            place = {"setting": setting, "prompt": tables["USUAL"], "clients": 1, "round": number}
            cells.append(place | figures | {"requests": 4, "right": 3, "checked": 4})
    rows = {row["setting"]: row for row in tables["summary"](cells)}
    assert rows["fast"]["requests_per_s"]["median"] == pytest.approx(2.25)
    assert rows["fast"]["right"] == 0.75
    verdicts = {name: tables["verdict"](row["requests_per_s"]) for name, row in rows.items()}
    assert verdicts == {"fast": "yes", "slow": "NO, slower", "like": "not told apart"}
