"""`foveate check`: the table, the record, and its exit codes."""

import json

import pytest

from foveate.engine.cache import PrunedLayer
from foveate.testing.checking import Checking


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_model_that_drops_right_ends_with_0(run, shallow_llava, picture, tmp_path):
    code, out, err = run("check", shallow_llava, "--image", picture, "--out", tmp_path / "check.json")
    assert code == 0
    assert out.startswith("foveate check: passed")
    assert "a cut by attention (fastv)" in out
    assert "transformers" in out.splitlines()[-1]
    record = json.loads((tmp_path / "check.json").read_text())
    assert (record["passed"], record["about"]["vision tokens"]) == (True, 36)
    assert {row["verdict"] for row in record["rows"]} == {"passed"}
    runs = next(line for line in err.splitlines() if "runs of the model" in line)
    assert f"with {record['about']['prompt']} prompt tokens (36 vision tokens)" in runs  # what it costs comes first
    assert err.index("runs of the model") < err.index("Checking: ")
    assert f"Checking: {len(record['rows'])} done" in err


def test_a_fault_ends_with_1_and_names_the_rows(run, shallow_llava, monkeypatch):
    update = PrunedLayer.update

    def forgets(self, keys, values, *others, **known):
        return update(self, keys, values * (keys.shape[-2] > 1), *others, **known)

    monkeypatch.setattr(PrunedLayer, "update", forgets)
    code, out, err = run("check", shallow_llava)
    assert code == 1
    assert out.startswith("foveate check: FAILED")
    assert "two cuts by hidden states (v2drop): failed: the difference is above the tolerance" in out
    assert "bug in foveate" not in err


OWN = """
from foveate.contract import Cuts, Hidden, Layers, Shares

class Long(Cuts):
    name = "long"
    reads = (Hidden(),)

    layers: Layers | None = None
    keep: Shares | None = None

    def score(self, view, layer):
        return view.hidden.float().square().sum(dim=-1)
"""


def test_a_method_of_ones_own_is_checked_on_a_tiny_model(run, tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    code, out, _ = run("check", "--method", f"{tmp_path}/mine.py:layers=2,4;keep=0.5,0.3")
    assert (code, out.startswith("foveate check: passed")) == (0, True)
    (tmp_path / "wrong.py").write_text(OWN.replace("view.hidden", "view.hidden[1:]"))
    code, out, _ = run("check", "--method", f"{tmp_path}/wrong.py")
    assert (code, "MethodError" in out) == (1, True)
    code, _, err = run("check", "embedded-films", "--method", "v2drop")
    assert (code, "leave the model" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["no/such/folder/"], 1, "is neither a local folder nor a hub id"),
        (["embedded", "--image", "nowhere.png"], 1, "nowhere.png"),
        (["embedded", "--dtype", "int3"], 2, "int3"),
        (["embedded", "--device", "abacus"], 2, "--device abacus is not available here"),
    ],
)
def test_what_cannot_be_checked_is_told_before_anything_runs(run, arguments, code, told, monkeypatch):
    monkeypatch.setattr(Checking, "run", lambda *_: pytest.fail("it ran"))
    ended, out, err = run("check", *arguments)
    assert ended == code
    assert out == ""
    assert told in err


def test_an_image_that_is_no_picture_is_refused(run, tiny_llava, tmp_path):
    path = tmp_path / "words.png"
    path.write_text("no picture")
    code, out, err = run("check", tiny_llava, "--image", path)
    assert (code, out) == (1, "")
    assert "is not a picture" in err
