"""`--method ./mine.py` at the commands."""

import json
import shutil

import pytest

from foveate.embedded import picture
from tests.test_own_files import OPEN

ASKED = ("--questions", 4, "--tasks", "colour,count", "--max-new-tokens", 4, "--no-baselines")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(OPEN)
    return path


@pytest.mark.further
def test_eval_asks_with_it_in_other_processes_and_again_once_it_is_changed(mine, run, tmp_path):
    asked = ("eval", *ASKED, "--method", "./mine.py", "--retention", 0.5, "--cache", tmp_path / "cache", "--json")
    code, said, err = run(*asked, "--workers", 2)
    assert code == 0, err
    assert [row["name"] for row in json.loads(said)["rows"] if row["task"] is None] == ["full model", "./mine.py"]
    code, _, err = run(*asked, "--workers", 1)
    assert "8 of 8 answers are known already" in err
    mine.write_text(OPEN.replace("return view", "return -view"))
    code, _, err = run(*asked, "--workers", 1)
    assert "4 of 8 answers are known already" in err


@pytest.fixture
def beside(mine):
    """A file that the method imports."""
    mine.write_text("from sign_beside import SIGN\n" + OPEN.replace("return view", "return SIGN * view"))
    path = mine.parent / "sign_beside.py"
    path.write_text("SIGN = 1\n")
    return path


def test_methods_shows_its_settings(mine, run):
    code, said, err = run("methods", "./mine.py")
    assert code == 0, err
    assert "layers" in said
    assert "--method ./mine.py" in said


@pytest.mark.parametrize("workers", [1, 2])
def test_a_line_that_fails_is_shown(mine, run, tmp_path, workers):
    mine.write_text(
        OPEN.replace("view.hidden.float()", "view.hiden.float()").replace("return view", "return nothing + view")
    )
    code, _, err = run("eval", *ASKED, "--method", "./mine.py", "--workers", workers, "--cache", tmp_path / "cache")
    assert code == 1
    assert "mine.py, line 14" in err
    assert "NameError" in err
    assert "bug in foveate" not in err


def test_where_its_error_shows_no_line_of_it_the_file_is_named(mine, run):
    mine.write_text(OPEN.replace("def score(self, view, layer)", "def score(self)"))
    _, _, err = run("generate", "--method", "./mine.py")
    assert "mine.py" in err


def test_batch_is_refused_once_a_file_that_it_imports_is_changed(beside, run, tmp_path):
    (tmp_path / "pictures").mkdir()
    shutil.copy(picture(), tmp_path / "pictures")
    asked = ("batch", "pictures", "answers", "--prompt", "What is it?", "--method", "./mine.py", "--max-new-tokens", 2)
    assert run(*asked)[0] == run(*asked)[0] == 0
    beside.write_text("SIGN = -1\n")
    code, _, err = run(*asked)
    assert code == 1
    assert "method code" in err


def test_tune_says_that_a_second_look_cannot_hold_its_code(mine, run, tmp_path):
    asked = ("tune", tmp_path, "--prompt", "What is it?", "--agreement", 0.9, "--method", "./mine.py")
    shutil.copy(picture(), tmp_path)
    code, _, err = run(*asked)
    assert code == 2
    assert "mine.py" in err
