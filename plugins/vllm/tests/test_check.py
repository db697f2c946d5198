"""`foveate-vllm check`: what it calls the same, and one run of it."""

import dataclasses
import json
import math

import pytest

import foveate.embedded
from foveate_vllm import check
from foveate_vllm.check import NEW, Answer, main, verdict
from foveate_vllm.layout import Layout


def answers(apart, alike=10):
    """Ten answers, so far from those of vLLM on average, so many of the same tokens."""
    return [Answer([0 if place < alike else 1] * NEW, [-0.5 - apart] * NEW) for place in range(10)]


MADE = answers(0)


@pytest.mark.parametrize(
    ("dtype", "under", "without", "passed", "said"),
    [
        ("bfloat16", 0.09, 0.3, True, "10 of 10 answers are the same (without dropping 4): as on transformers"),
        ("bfloat16", 0.25, 1.0, False, "NOT as on transformers"),
        ("bfloat16", 0.09, 0.11, False, "this says nothing, because the method changes too little"),
        ("float16", math.nan, math.nan, False, "NOT as on transformers"),
        ("float32", 1e-6, 0.3, True, "as on transformers"),
        ("float32", 2e-3, 0.3, False, "NOT as on transformers"),
        ("float32", 1e-6, 2e-6, False, "this says nothing"),
    ],
)
def test_log_probabilities_decide_and_say_nothing_where_the_method_changes_too_little(
    dtype, under, without, passed, said
):
    outcome = verdict(dtype, MADE, answers(under), answers(without, alike=4))
    assert outcome[0] == passed
    assert said in outcome[1]


@pytest.mark.parametrize("words", [["v2dorp"], ["read"], ["embedded", "--method", "resize:tokens=64"]])
def test_a_method_that_is_none_or_cannot_run_in_vllm_is_said_in_a_line(words, capsys):
    assert main(["check", *words]) == 2
    assert "\nfoveate-vllm: " in f"\n{capsys.readouterr().err}"


def test_the_embedded_model_is_checked_with_the_usual_method(monkeypatch):
    monkeypatch.setattr(check, "_in_vllm", lambda options, asked: pytest.fail(f"{options.model} {options.method}"))
    with pytest.raises(pytest.fail.Exception, match="embedded v2drop"):
        main(["check", "embedded"])


@pytest.mark.long
def test_this_machine_drops_as_transformers_does_and_a_wrong_length_is_seen(tmp_path, capsys, monkeypatch):
    record = tmp_path / "check.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    order = ["check", "v2drop:tokens=120", "--dtype", "bfloat16", "--out", str(record)]
    assert main(order) == 0
    assert "CPU_ATTN: log-probabilities differ by" in capsys.readouterr().out
    assert json.loads(record.read_text())["passed"] is True
    (passed,) = json.loads((tmp_path / "foveate/vllm-checks.json").read_text())
    assert passed[-2:] == [str(foveate.embedded.path()), "v2drop:tokens=120"]

    def longer(self, built, stock):
        metadata_of, slots = metadata(self, built, stock)
        return dataclasses.replace(metadata_of, seq_lens=metadata_of.seq_lens + 1), slots

    metadata = Layout.metadata
    monkeypatch.setattr(Layout, "metadata", longer)
    assert main(order) == 1
    assert "NOT as on transformers" in capsys.readouterr().out
    assert json.loads((tmp_path / "check-2.json").read_text())["passed"] is False
