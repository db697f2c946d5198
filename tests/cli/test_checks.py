"""What cannot be done is refused before torch is imported, in the words that it would be refused with later."""

import json
import subprocess
import sys

import pytest

from foveate import embedded
from foveate.cli.checks import check_methods
from foveate.errors import InputError
from foveate.methods.uniform import Uniform
from foveate.plain import inventory

PICTURE = str(embedded.picture())
SLOW = ("torch", "transformers", "numpy", "matplotlib", "PIL", "pydantic", "gradio", "pyarrow")
ASK = ["--prompt", "x"]
REFUSED = [
    (["comparre"], "No command 'comparre'. Did you mean compare?"),
    (["generate", "nofile.png", *ASK], "nofile.png cannot be read"),
    (["generate", ".", *ASK], ". is a folder"),
    (["generate", PICTURE], "The question is missing."),
    (["generate", PICTURE, *ASK, "--method", "visiondropp"], "No method 'visiondropp'. Did you mean visiondrop"),
    (["generate", PICTURE, *ASK, "--method", "nosuch.json"], "nosuch.json cannot be read"),
    (["generate", PICTURE, *ASK, "--method", "./nosuch.py"], "nosuch.py cannot be read"),
    (["generate", PICTURE, *ASK, "--model", "./nofolder"], "There is no folder ./nofolder"),
    (["generate", PICTURE, *ASK, "--model", "~nouser/m"], "There is no folder ~nouser/m: Could not determine home"),
    (["generate", PICTURE, *ASK, "--model", "./\udcff"], r"There is no folder ./\udcff"),
    (["generate", PICTURE, *ASK, "--model", "\udcff/m"], r"Model '\udcff/m' is neither a local folder nor a hub id"),
    (["generate", PICTURE, *ASK, "--model", "./" + "m" * 5000], "mmm…: File name too long"),
    (["generate", PICTURE, *ASK, "--model", "llava"], "written OWNER/NAME"),
    (["compare", "nofile.png", *ASK], "nofile.png cannot be read"),
    (["eval", "--method", "v2dop:metric=l1"], "No method 'v2dop'. Did you mean v2drop?"),
    (["eval", "--include", "nowhere"], "--logs"),
    (["eval", "--model", "./nofolder"], "There is no folder ./nofolder"),
    (["bench", "--method", "visiondrop+nosuch"], "No method 'nosuch'"),
    (["tune", "nofile.png", *ASK, "--retention", "0.5"], "nofile.png cannot be read"),
    (["batch", "none.jsonl", "out"], "none.jsonl cannot be read: No such file"),
    (["batch", "none", "out"], "none cannot be read: No such file"),
    (["demo", "--model", "./nosuch"], "There is no folder ./nosuch"),
    (["generate", "--figure", PICTURE], "exists already"),
    (["generate", "--model", "a/b", *ASK], "The image is missing."),
    (["methods", "nosuch"], "No method 'nosuch'"),
    (["models", "qwen2vl"], "No model_type 'qwen2vl'. Did you mean qwen2_vl"),
]


LISTS = [["methods"], *([*words, "--help"] for words in ([], ["generate"], ["compare"], ["eval"], ["demo"]))]
LISTS += [["generate", "--tyro-print-completion", "bash"]]
PROGRAM = f"""
import contextlib, io, json, sys
from foveate.cli import main
ended = []
for arguments in json.loads(sys.argv[1]):
    there = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(arguments)
    ended.append((code, said.getvalue(), [name for name in {SLOW} if name in set(sys.modules) - there]))
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended():
    """Exit code, stderr and slow packages that are new, of each command in a fresh interpreter."""
    commands = [*LISTS, *(words for words, _ in REFUSED)]
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return dict(zip(map(tuple, commands), json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("arguments", "says"), REFUSED, ids=[" ".join(words[:1] + words[-2:]) for words, _ in REFUSED])
def test_refusals_load_nothing_slow(ended, arguments, says):
    code, err, loaded = ended[tuple(arguments)]
    assert code in (1, 2)
    assert says in err
    assert err.count("\n") == 1
    assert loaded == []


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_lists_load_nothing_slow(ended, command):
    assert ended[tuple(command)] == [0, "", []]


@pytest.mark.parametrize(
    "text",
    ["v2drop", "v2drop/llava-1.5-7b/64:metric=l1", "visiondrop + v2drop:scope=image + finalkv", '{"method": "random"}'],
)
def test_what_can_be_run_passes(text):
    check_methods([text])


def test_a_method_file_has_to_be_there(tmp_path):
    (path := tmp_path / "a.json").write_text(json.dumps({"method": "v2drop"}))
    check_methods([str(path)])
    with pytest.raises(InputError, match="cannot be read"):
        check_methods([str(tmp_path / "b.json")])


def test_a_method_that_another_package_brings_passes(monkeypatch):
    monkeypatch.setattr(inventory, "entry_points_of", lambda group: (type("Brought", (Uniform,), {"name": "brought"}),))
    check_methods(["brought"])


def test_a_model_that_is_no_shape_is_refused_with_where_shapes_are_listed(run):
    for name in ("cpu-mediun", "m" * 5000):
        code, _, err = run("bench", "--model", name)
        assert (code, "is neither a local folder nor a hub id" in err, "Shapes: foveate bench --shapes" in err) == (
            1,
            True,
            True,
        )


def test_the_preset_of_a_chain_is_a_method_and_meets_no_budget_of_its_members(run):
    code, out, err = run("generate", "--method", "chain/llava-1.5-7b/64-divprune-v2drop")
    assert code == 0, err
    assert "of the vision tokens: 63.9 of 576" in out.replace("\n", " ")
    assert "not met" not in out
    code, _, err = run("generate", "--method", "chain/llava-1.5-7b/65-divprune-v2drop")
    assert code == 2
    assert "Did you mean chain/llava-1.5-7b/64-divprune-v2drop" in err
