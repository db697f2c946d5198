"""`foveate-vllm check`: what it calls the same, and one run of it."""

import json

import pytest

from foveate_vllm.check import NEW, Answer, main, verdict


def answer(token, logprob=-0.5):
    return Answer([token] * NEW, [logprob] * NEW)


MADE = [answer(place) for place in range(10)]
"""Ten answers of vLLM."""


def sides(same, other):
    """What transformers says under the method and without, with so many answers alike."""
    return [[answer(place if place < count else 99) for place in range(10)] for count in (same, other)]


@pytest.mark.parametrize(
    ("same", "other", "passed", "said"),
    [
        (10, 2, True, "10 of 10 answers are the same (without dropping 2): as on transformers"),
        (7, 5, True, "as on transformers"),
        (6, 2, False, "NOT as on transformers"),
        (10, 6, False, "this says nothing, as the method changes too little"),
    ],
)
def test_in_half_precision_answers_under_a_drop_that_changes_them_decide(same, other, passed, said):
    found = verdict("bfloat16", MADE, *sides(same, other))
    assert found[0] == passed
    assert said in found[1]


@pytest.mark.parametrize(
    ("under", "without", "passed"), [(1e-6, 1e-2, True), (2e-3, 1.0, False), (5e-4, 1e-3, False), (0.3, 0.2, False)]
)
def test_in_float32_log_probabilities_decide(under, without, passed):
    near, far = ([answer(place, -0.5 - apart) for place in range(10)] for apart in (under, without))
    assert verdict("float32", MADE, near, far)[0] == passed


def test_a_method_that_is_none_is_said_in_a_line(capsys):
    assert main(["check", "v2dorp"]) == 2
    assert capsys.readouterr().err.startswith("foveate-vllm: ")


@pytest.mark.long
def test_this_machine_drops_as_transformers_does(tmp_path, capsys):
    record = tmp_path / "check.json"
    assert main(["check", "v2drop:tokens=192", "--dtype", "float32", "--out", str(record)]) == 0
    assert "CPU_ATTN: log-probabilities differ by" in capsys.readouterr().out
    assert json.loads(record.read_text())["passed"] is True
