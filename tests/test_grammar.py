"""One grammar for methods, everywhere: in Python, in every command, and in lmms-eval; and what it refuses."""

import json

import pytest
from transformers import LlavaConfig

import foveate as fv
from foveate import cli, embedded, naming
from foveate.registry import takes_budget
from tests.models import batch, tiny
from tests.tuning.presets import preset_of

CONFIG = LlavaConfig()  # LLaVA-1.5-7B's: 32 layers


# -- what a text says -----------------------------------------------------------------------------------------


def test_a_file_says_the_same(tmp_path):
    path = tmp_path / "a+b.json"
    path.write_text(json.dumps(fv.V2Drop(metric="l1").to_dict()))
    assert naming.parse(str(path)) == fv.V2Drop(metric="l1")
    path.write_text('{"method": 3}')
    with pytest.raises(fv.InputError, match="names no method"):
        naming.parse(str(path))


WRONG = [
    ("v2drop:keep=x", "keep"),
    ("v2drop:layers=9,3", "ascend"),
    ("v2drop:keep=0.5,0.3,0;retention=0.3", "either"),
    ("v2drop:colour=red", "colour"),
    ("v2drop+", "missing"),
    ('{"method": "v2drop"', "JSON"),
    ("v2drop/llava-9/1", "preset"),
    ("visiondrop+v3drop:metric=l1", "v3drop"),
]
"""What tests/test_naming.py lists at length, one of each sort."""
COMMANDS = {
    "generate": [], "compare": [], "eval": [], "bench": ["--model", "cpu-small"],
    "tune": [str(embedded.picture()), "--prompt", "x", "--retention", "0.5"],
}  # fmt: skip
REFUSING = [(command, *WRONG[0]) for command in COMMANDS]
REFUSING += [(list(COMMANDS)[place % len(COMMANDS)], *wrong) for place, wrong in enumerate(WRONG)]


@pytest.mark.parametrize(("command", "text", "says"), REFUSING)
def test_every_command_refuses_in_one_sentence(command, text, says, capsys):
    code = cli.main([command, *COMMANDS[command], "--method", text])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(("text", "says"), [wrong for wrong in WRONG if not wrong[0].startswith("{")][::3])
def test_lmms_eval_refuses_in_one_sentence(text, says, capsys):
    pytest.importorskip("lmms_eval")
    from foveate.eval.lmms.plugin import Foveate

    with pytest.raises(SystemExit) as ended:
        Foveate.create_from_arg_string(f"pretrained=embedded,method='{text}'", {"batch_size": 1})
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert says in err
    assert len(err.strip().splitlines()) == 1


# -- budgets --------------------------------------------------------------------------------------------------


def test_a_budget_below_the_floor_is_refused_when_the_image_comes():
    model = tiny("llava")
    with pytest.raises(fv.BudgetError, match="floor"), fv.drop(model, "v2drop", retention=0.01):
        model(**batch("llava", ["titit"]))


@pytest.mark.parametrize("count", [0, -1])
def test_an_image_has_tokens(count):
    for kind in filter(takes_budget, fv.methods().values()):
        with pytest.raises(fv.SettingError, match=f"1 or more; got {count}"):
            kind.for_budget(CONFIG, retention=0.3, vision_tokens=count)


# -- records --------------------------------------------------------------------------------------------------

TUNED = fv.MustDrop(global_thr=0.004, individual_thr=0.004, pruning_layers=(2, 5, 9, 12))
RECORD = preset_of(TUNED).to_dict()


def test_a_record_is_read(tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(RECORD))
    assert fv.Tuned.load(path).method == naming.parse(str(path)) == TUNED
    assert naming.parse(f"{path}:kv=false").kv is False


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[1]", "", "{", '{"method": {"method": "v2drop", "min_keep": 1.5}}']
)
@pytest.mark.parametrize("command", ["generate", "eval"])
def test_a_file_that_is_no_record_is_refused_in_one_sentence(text, command, tmp_path, capsys):
    path = tmp_path / "record.json"
    path.write_text(text)
    code = cli.main([command, "--method", str(path)])
    err = capsys.readouterr().err
    assert (code in (1, 2), len(err.strip().splitlines())) == (True, 1)
