"""A Python file with a method, named where a method's name goes."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import foveate as fv
from foveate.contract.method import Chain
from foveate.eval.records import key_of
from foveate.naming import is_bare, method_of, parse, settings_given
from foveate.plain.own_files import digests_of

BODY = """
from foveate.contract import Cuts, LayerStage, Method, Once, Share


class Mine(Method):
    name = "mine"

    keep: Share = 0.5

    def stages(self, shape):
        return (LayerStage(2, keep=self.keep, score=largest),)


def largest(view):
    return view.tokens
"""
OPEN = """
from foveate.contract import Cuts, Hidden, Layers, Shares


class Mine(Cuts):
    name = "mine"
    usual_layers = (2, 4)
    reads = (Hidden(),)

    layers: Layers | None = None
    keep: Shares | None = None

    def score(self, view, layer):
        return view.hidden.float().norm(dim=-1)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(BODY)
    return Path("mine.py")


@pytest.mark.parametrize("text", ["./mine.py", "mine.py", " './mine.py' ", "./mine.py:", "{folder}/mine.py"])
def test_a_file_is_the_method_in_it(mine, text):
    method = parse(text.format(folder=mine.absolute().parent))
    assert str(method) == "mine"
    assert method == parse("mine.py")


@pytest.mark.parametrize("text", ["./mine.py:keep=0.3", "./mine.py : keep = 0.3", "./mine.py:keep=30%"])
def test_settings_are_spelled_as_of_others(mine, text):
    assert parse(text).keep == parse("./mine.py", ["keep=0.3"]).keep == 0.3
    assert settings_given(text) == {"keep"}


def test_it_goes_into_chains(mine):
    chain = parse("visionzip+./mine.py:keep=0.3+finalkv")
    assert isinstance(chain, Chain)
    assert [member.name for member in chain.members] == ["visionzip", "mine", "finalkv"]


def test_a_path_may_have_a_colon(mine):
    Path("c:d").mkdir()
    Path("c:d/mine.py").write_text(BODY)
    assert parse("c:d/mine.py:keep=0.3").keep == 0.3


@pytest.mark.parametrize("text", ["./a+b/my+own.py:keep=0.3", "{folder}/a+b/my+own.py:keep=0.3"])
def test_a_path_may_have_a_plus(mine, text):
    Path("a+b").mkdir()
    Path("a+b/my+own.py").write_text(BODY)
    text = text.format(folder=Path.cwd())
    assert parse(text).keep == 0.3
    chain = parse(f"visionzip+{text}+./mine.py+finalkv")
    assert [member.name for member in chain.members] == ["visionzip", "mine", "mine", "finalkv"]


def test_it_may_import_a_file_beside_it_from_any_folder(mine, monkeypatch):
    Path("ranking_beside.py").write_text("def largest(view):\n    return view.tokens\n")
    mine.write_text(
        BODY.split("def largest")[0].replace("\nclass", "\nfrom ranking_beside import largest\n\n\nclass", 1)
    )
    path = mine.absolute()
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert parse(str(path)).name == "mine"


def test_it_takes_budgets_as_a_name_does(mine):
    mine.write_text(OPEN)
    assert is_bare("./mine.py")
    assert method_of("./mine.py").retention == pytest.approx(1 / 3)
    assert method_of("./mine.py", tokens=64).tokens == 64


def test_METHOD_says_which_of_several(mine):
    mine.write_text(BODY + "\n\nclass Other(Mine):\n    name = 'other'\n\n\nMETHOD = Other\n")
    assert parse("./mine.py").name == "other"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1", "must define one method.*none"),
        (BODY + "\n\nclass Other(Mine):\n    name = 'other'\n", "Mine, Other"),
        (BODY + "\n\nMETHOD = 3\n", "METHOD.*Mine"),
        ("from foveate import V2Drop\nMETHOD = V2Drop", "METHOD.*none"),
        ("from foveate.contract import Method\n\n\nclass Mine(Method):\n    name = 'mine'\n", "with stages"),
        (BODY.replace('"mine"', '"v2drop"'), "a name of its own.*v2drop"),
        (BODY.replace('    name = "mine"\n', ""), "a name of its own.*None"),
    ],
)
def test_a_file_without_its_one_method_is_refused(mine, source, message):
    mine.write_text(source)
    with pytest.raises(fv.SettingError, match=message):
        parse("./mine.py")


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import math\n\nmath.nothing\n", "line 3, 'math.nothing': AttributeError"),
        ("def f(:\n    pass\n", r"line 1, 'def f\(:': SyntaxError"),
        ("import sys\nsys.exit(3)\n", "line 2, .*SystemExit"),
        ("import nothing_of_that_name\n", "line 1, .*ModuleNotFoundError"),
        ("from foveate.contract import Attention\nAttention(rows='all')\n", "line 2, .*SettingError"),
    ],
)
def test_a_file_that_fails_shows_its_line(mine, source, line):
    mine.write_text(source)
    with pytest.raises(fv.InputError, match=line):
        parse("./mine.py")


def test_no_file_is_said_to_be_none(mine):
    with pytest.raises(fv.InputError, match="other"):
        parse("./other.py")


def test_json_never_runs_a_file(mine):
    with pytest.raises(fv.UnknownNameError):
        parse(json.dumps({"method": "./mine.py"}))


def test_another_process_reads_it_from_its_path(mine):
    pickled = pickle.dumps(parse("finalkv+./mine.py:keep=0.3"))
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    ran = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True, cwd="/")
    assert ran.stdout.decode().strip() == "finalkv+mine:keep=0.3"


def test_a_changed_file_is_another_method(mine):
    first = parse("./mine.py")
    pickled, key = pickle.dumps(first), key_of(first)
    mine.write_text(BODY.replace("view.tokens", "-view.tokens"))
    assert key_of(parse("./mine.py")) != key
    assert key_of(first) == key
    with pytest.raises(fv.InputError, match="meanwhile"):
        pickle.loads(pickled)


BESIDE = BODY.split("def largest")[0].replace("\nclass", "\nfrom {module} import largest\n\n\nclass", 1)
LARGEST = "def largest(view):\n    return view.tokens\n"


@pytest.mark.parametrize(
    ("imported", "files", "edited"),
    [
        ("beside_a", {"beside_a.py": LARGEST}, "beside_a.py"),
        ("beside_b", {"beside_b.py": "from further_b import largest\n", "further_b.py": LARGEST}, "further_b.py"),
        ("beside_c", {"beside_c.py": f"{LARGEST}    import late_c\n", "late_c.py": ""}, "late_c.py"),
        (
            "parts_d.inner.rank",
            {
                "parts_d/__init__.py": "",
                "parts_d/shared.py": "",
                "parts_d/inner/__init__.py": "from .. import shared\n",
                "parts_d/inner/rank.py": LARGEST,
            },
            "parts_d/shared.py",
        ),
        ("bare_e.rank", {"bare_e/rank.py": f"from .low import *\n{LARGEST}", "bare_e/low.py": ""}, "bare_e/low.py"),
    ],
)  # fmt: skip
def test_a_change_of_what_it_imports_is_another_method_that_runs_the_new_code(mine, imported, files, edited):
    for name, source in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(source)
    mine.write_text(BESIDE.format(module=imported))
    first = parse("./mine.py")
    pickled, key = pickle.dumps(first), key_of(first)
    assert key_of(parse("./mine.py")) == key
    with Path(edited).open("a") as file:
        file.write("\nCHANGED = True\n")
    second = parse("./mine.py")
    assert key_of(second) != key
    assert key_of(first) == key
    changed = edited.removesuffix(".py").replace("/", ".")
    if changed in sys.modules:
        assert sys.modules[changed].CHANGED
    with pytest.raises(fv.InputError, match="meanwhile"):
        pickle.loads(pickled)


def test_what_it_does_not_import_and_installed_packages_are_no_part_of_its_code(mine):
    mine.write_text(f"import json\nimport numpy\nimport torch.nn as nn\nfrom PIL import Image\n{BODY}")
    Path("other.py").write_text("x = 1\n")
    assert list(digests_of(mine)) == [""]
