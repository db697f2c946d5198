"""What cannot be done is refused before torch is imported, in the words that it would be refused with later."""

import json
import subprocess
import sys

import pytest

from foveate import _index, embedded
from foveate.cli.asking import named
from foveate.cli.checks import check_methods, check_model_name
from foveate.cli.options import BudgetOptions
from foveate.contract.naming import parse
from foveate.errors import FoveateError, InputError
from tests.test_grammar import WRONG

PICTURE = str(embedded.picture())
SLOW = ("torch", "transformers", "numpy", "matplotlib", "PIL", "pydantic")
ASK = ["--prompt", "x"]
REFUSED = [
    (["generate", "nofile.png", *ASK], "nofile.png cannot be read"),
    (["generate", ".", *ASK], ". is a folder"),
    (["generate", PICTURE], "What is the question?"),
    (["generate", PICTURE, *ASK, "--method", "nosuch"], "No method 'nosuch'"),
    (["generate", PICTURE, *ASK, "--method", "nosuch.json"], "nosuch.json cannot be read"),
    (["generate", PICTURE, *ASK, "--set", "nosuch=1"], "--set nosuch: no such setting of v2drop"),
    (["generate", PICTURE, *ASK, "--retention", "2"], "a share lies in (0, 1]"),
    (["generate", PICTURE, *ASK, "--model", "./nofolder"], "There is no folder ./nofolder"),
    (["generate", PICTURE, *ASK, "--model", "~nouser/m"], "There is no folder ~nouser/m: Could not determine home"),
    (["generate", PICTURE, *ASK, "--model", "./\udcff"], r"There is no folder ./\udcff"),
    (["generate", PICTURE, *ASK, "--model", "\udcff/m"], r"Model '\udcff/m' is no folder here"),
    (["generate", PICTURE, *ASK, "--model", "./" + "m" * 5000], "mmm…: File name too long"),
    (["bench", "--model", "m" * 5000], "mmm…' is no folder here"),
    (["generate", PICTURE, *ASK, "--model", "llava"], "written OWNER/NAME"),
    (["generate", PICTURE, *ASK, "--frames", "0"], "--frames 0: 1 or more"),
    (["compare", "nofile.png", *ASK], "nofile.png cannot be read"),
    (["compare", PICTURE, *ASK, "--method", "v2drop/llava-1.5-7b/99"], "Similar names: v2drop/llava-1.5-7b/192"),
    (["compare", PICTURE, *ASK, "--set", "nosuch=1"], "no such setting of v2drop, visiondrop"),
    (["eval", "--method", "v2drop:nosuch=1"], "v2drop has no setting nosuch"),
    (["eval", "--model", "./nofolder"], "There is no folder ./nofolder"),
    (["bench", "--method", "visiondrop+nosuch"], "No method 'nosuch'"),
    (["bench", "--model", "cpu-mediun"], "Shapes: foveate bench --shapes"),
    (["tune", "nofile.png", *ASK, "--retention", "0.5"], "nofile.png cannot be read"),
    (["tune", PICTURE, *ASK, "--retention", "0.5", "--set", "nosuch=1"], "--set nosuch"),
    (["methods", "nosuch"], "No method 'nosuch'"),
    (["models", "nosuch"], "No family for model_type 'nosuch'"),
    (["presets", "nosuch"], "No preset's name contains 'nosuch'"),
]


LISTS = [[command, *flags] for command in ("methods", "models", "presets") for flags in ([], ["--json"])]
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


def refusal(check, *arguments):
    """The kind and the words of what a check raises; None if it passes."""
    try:
        check(*arguments)
    except FoveateError as error:
        return type(error), str(error)


@pytest.mark.parametrize("text", [text for text, _ in WRONG], ids=[text[:40] for text, _ in WRONG])
def test_a_method_is_refused_in_the_same_words_as_later(text):
    early, later = refusal(check_methods, [text]), refusal(parse, text)
    assert early in (None, later)


def test_most_wrong_names_are_refused_early():
    for text in (
        "v3drop",
        "v2drop/llava-9/1",
        "v2drop:colour=1",
        "v2drop:metric",
        "v2drop:over=net;over=net",
        "v2drop+",
    ):
        assert refusal(check_methods, [text]) is not None


@pytest.mark.parametrize(
    "options",
    [
        BudgetOptions(settings=("colour=red",)),
        BudgetOptions(budget=192, settings=("keep=0.5",)),
        BudgetOptions(seed=1),
        BudgetOptions(budget=1, retention=0.5),
        BudgetOptions(retention=1.5),
    ],
)
def test_flags_are_refused_in_the_same_words_as_later(options):
    early, later = refusal(check_methods, ["v2drop"], options), refusal(named, ["v2drop"], options)
    assert early == later is not None


@pytest.mark.parametrize(
    "text",
    ["v2drop", "v2drop/llava-1.5-7b/64:metric=l1", "visiondrop + v2drop:scope=image + finalkv", '{"method": "random"}'],
)
def test_what_can_be_run_passes(text):
    check_methods([text], BudgetOptions(settings=()))


def test_a_method_file_passes_and_one_with_an_unknown_method_does_not(tmp_path):
    (path := tmp_path / "a.json").write_text(json.dumps({"method": {"method": "v2drop", "metric": "l1"}}))
    check_methods([str(path)], BudgetOptions(settings=("metric=l2",)))
    path.write_text(json.dumps({"method": "chain", "members": [{"method": "v2drop"}, {"method": "nosuch"}]}))
    with pytest.raises(FoveateError, match="No method 'nosuch'"):
        check_methods([str(path)])
    path.write_text("[]")
    with pytest.raises(InputError, match="does not hold a JSON object"):
        check_methods([str(path)])


def test_without_an_index_names_are_left_to_those_who_read_them(monkeypatch):
    monkeypatch.setattr(_index, "stored", lambda: None)
    check_methods(["nosuch"])


def test_a_folder_without_a_config_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        check_model_name(str(tmp_path))
    check_model_name("llava-hf/llava-1.5-7b-hf")
    check_model_name("embedded")


def test_one_method_and_one_family_are_shown_with_their_settings_and_places(run):
    code, out, _ = run("methods", "v2drop")
    assert code == 0
    assert "l2, l1, cosine or relative" in out
    assert "v2drop/llava-1.5-7b/192" in out
    code, out, _ = run("models", "qwen2_vl")
    assert code == 0
    assert "Between layers" in out
    assert "i v" in out


def test_models_and_methods_fit_a_screen(run):
    assert len(run("models")[1].splitlines()) < 40
    assert len(run("methods")[1].splitlines()) < 40


def test_the_preset_of_a_chain_is_a_method_and_meets_no_budget_of_its_members(run):
    code, out, err = run("generate", "--method", "chain/llava-1.5-7b/64-divprune-v2drop")
    assert code == 0, err
    assert "of the vision tokens: 63.9 of 576" in out.replace("\n", " ")
    assert "not met" not in out
    code, _, err = run("generate", "--method", "chain/llava-1.5-7b/65-divprune-v2drop")
    assert code == 2
    assert "Similar names: chain/llava-1.5-7b/64-divprune-v2drop" in err
