"""What a second look costs and promises: the guide says what the record says, and the script makes such a record."""

import json
import math
import runpy
from pathlib import Path

import pytest

from foveate.plain.table import between
from foveate.tuning.promise import RISK, bound

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "second_look" / "run.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def record():
    return json.loads(SCRIPT.with_name("record.json").read_text(encoding="utf-8"))


def test_the_guide_says_what_the_committed_record_says(script, record):
    guide = (ROOT / "docs/guides/second-look.md").read_text(encoding="utf-8")
    assert between(guide, "second look", f"{script['page'](record)}\n") == guide


def test_promises_hold_on_pictures_whose_true_share_is_known(record):
    noise = 3 * math.sqrt(RISK * (1 - RISK) / record["about"]["calibrations"])
    promises = [one for of_look in record["promises"].values() for one in of_look]
    assert len(promises) == 12
    for one in promises:
        assert one["above"] <= RISK + noise
        possible = bound(0, one["samples"], RISK) <= 1 - one["agreement"]
        assert possible or one["again"] == 1


def test_figures_are_made_of_the_answers_that_are_kept(script, record, tmp_path, capsys):
    out = tmp_path / "again.json"
    few = {**record, "about": {**record["about"], "calibrations": 3}}
    (tmp_path / "kept.json").write_text(json.dumps(few))
    script["main"](["--answers", str(tmp_path / "kept.json"), "--out", str(out)])
    again = json.loads(out.read_text())
    for name in ("curves", "fixed", "auroc", "tasks", "shifted", "times", "answers"):
        assert again[name] == record[name]
    assert "asked again" in capsys.readouterr().out


def test_the_script_writes_a_record(script, tmp_path, capsys):
    out = tmp_path / "record.json"
    script["main"](["--out", str(out), "--pool", "4", "--fresh", "3", "--timed", "1", "--calibrations", "2"])
    record = json.loads(out.read_text())
    assert (len(record["answers"]["pool"]), len(record["answers"]["fresh"])) == (4, 3)
    assert [row["run"] for row in record["times"]] == ["full again", "few tokens", "asked again"]
    assert "Time of an answer alone" in capsys.readouterr().out
