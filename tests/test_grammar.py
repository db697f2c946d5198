"""One grammar for methods, everywhere: in Python, in every command, and in lmms-eval; and what it refuses."""

import pytest
from transformers import LlavaConfig

import foveate as fv
from foveate import cli, embedded
from tests.tuning.presets import preset_of

CONFIG = LlavaConfig()  # LLaVA-1.5-7B's: 32 layers


# -- what a text says -----------------------------------------------------------------------------------------


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


# -- budgets --------------------------------------------------------------------------------------------------


# -- records --------------------------------------------------------------------------------------------------

TUNED = fv.MustDrop(global_thr=0.004, individual_thr=0.004, pruning_layers=(2, 5, 9, 12))
RECORD = preset_of(TUNED).to_dict()


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
