"""What an answer tells of itself: as plain values, in a notebook, in a line."""

import json
import warnings

import pytest
import torch

import foveate as fv
from foveate import embedded
from foveate.ask.answer import Saved

QUESTION = embedded.QUESTION


@pytest.fixture(scope="module")
def dropped(vlm, demo):
    return vlm.ask(demo, QUESTION, method="v2drop", retention=0.5)


@pytest.fixture(scope="module")
def whole(vlm, demo):
    return vlm.ask(demo, QUESTION)


@pytest.fixture(scope="module")
def text_alone(vlm):
    return vlm.ask([], QUESTION, method="v2drop", max_new_tokens=2)


@pytest.fixture(scope="module")
def chosen(vlm, demo):
    return vlm.ask(demo, QUESTION, choices=["36KUM", "ABC"], method="v2drop")


def test_what_a_step_reads_is_told(vlm, demo):
    lines = dict(vlm.ask(demo, QUESTION, method="read:keep=0.25", max_new_tokens=2).lines())
    assert lines["Decoding"] == "a step reads 144 vision tokens in each of 32 layers"


@pytest.mark.parametrize("name", ["dropped", "whole", "text_alone", "chosen"])
def test_an_answer_is_json(name, request):
    answer = request.getfixturevalue(name)
    values = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert values["answer"] == answer.text
    assert values["token_ids"] == list(answer.tokens)
    assert values["retention"] == values["spent"] == answer.retention
    assert (values["asked"], values["met"]) == (answer.asked, answer.met)
    assert ("trace" in values) == bool(answer.trace.history)
    assert ("cost" in values) == ("saved" in values) == bool(answer.vision_tokens)
    assert json.loads(json.dumps(answer.prompt.to_dict()))["prompt"] == answer.prompt.text
    if answer.method is not None:
        assert type(answer.method).from_dict(values["setting"]) == answer.method


def test_what_was_saved_is_a_share_of_the_untouched_model(vlm, dropped, whole):
    saved = dropped.saved
    assert saved.to_dict() == {name: getattr(saved, name) for name in ("prefill_flops", "total_flops", "kv_bytes")}
    assert saved.kv_bytes == 1 - dropped.kv_bytes / dropped.kv_bytes_whole
    assert dropped.kv_bytes_whole == whole.kv_bytes_whole == whole.kv_bytes
    untouched = fv.cost(vlm.model.config, text_tokens=dropped.prompt.text_tokens, vision_tokens=576)
    assert dropped.cost_untouched.total_flops == untouched.total_flops == whole.flops
    assert saved.total_flops == pytest.approx(1 - dropped.flops / whole.flops)
    assert 0.3 < saved.prefill_flops < 0.6
    assert 0 < saved.total_flops < saved.prefill_flops


def test_without_dropping_nothing_is_saved(whole, text_alone):
    assert whole.saved == Saved(0.0, 0.0, 0.0)
    assert text_alone.saved == Saved(0.0, 0.0, 0.0)
    assert text_alone.flops is None


@pytest.mark.parametrize(
    ("asked", "met"),
    [({"method": None}, None), ({"method": fv.V2Drop()}, None), ({"method": "v2drop"}, True),
     ({"method": "v2drop", "tokens": 200}, True),
     ({"method": "visiondrop+v2drop:retention=0.9"}, False), ({"method": "v2drop:layers=2;keep=0.5"}, None)],
)  # fmt: skip
def test_a_budget_is_met_within_two_percent_or_not_asked_for(vlm, demo, asked, met):
    prompt = vlm.prepare(demo, QUESTION)
    answer = vlm.answer(prompt, generation=fv.Generation(max_new_tokens=1), **asked)
    assert answer.met is met
    assert (answer.asked is None) == (met is None)
    assert (answer.missed is None) == (met is not False)


def test_a_budget_that_is_not_met_is_said_wherever_an_answer_is_shown(vlm, demo):
    """MustDrop's merging in the tower alone goes far below what is asked."""
    asked = {"method": "mustdrop", "retention": 0.9}
    says = r"mustdrop does not meet the budget: 90.0% requested, \d+\.\d% spent\."
    with pytest.warns(UserWarning, match=says) as warned:
        answer = vlm.ask(demo, QUESTION, max_new_tokens=1, **asked)
    assert warned[0].filename == __file__
    assert repr(answer).endswith("90.0% asked for)")
    assert f"not met: {answer.missed}" in answer._repr_html_()
    with pytest.warns(UserWarning, match=says):
        list(vlm.ask_many([(demo, QUESTION)], max_new_tokens=1, **asked))
    with pytest.warns(UserWarning, match=says):
        vlm.ask(demo, QUESTION, choices=["1", "2"], **asked)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = vlm.ask(demo, QUESTION, method="v2drop", tokens=192, max_new_tokens=1)
    assert "asked for" not in repr(whole)


def test_a_budget_too_small_for_the_method_is_said_once_at_every_door(vlm, demo):
    few = {"method": "v2drop", "tokens": 64}
    says = "not the best choice for so few tokens"
    with pytest.warns(UserWarning, match=says) as warned:
        answer = vlm.ask(demo, QUESTION, max_new_tokens=1, **few)
    assert [one.filename for one in warned] == [__file__]
    assert says in " ".join(answer.notes)
    inputs = vlm.prepare(demo, QUESTION).inputs
    with pytest.warns(UserWarning, match=says) as warned, fv.drop(vlm.model, "v2drop", tokens=64):
        vlm.model.generate(**inputs, max_new_tokens=2)
    assert [one.filename for one in warned] == [__file__]


def test_the_said_tokens_are_those_before_the_end(vlm, whole):
    assert whole.said == whole.tokens[:-1]
    assert vlm.tokenizer.decode(list(whole.said)) == "36KUM"


def test_the_first_token_is_kept_only_where_asked_for(vlm, demo, whole):
    assert whole.first is None
    first = vlm.answer(whole.prompt, first=True).first
    assert first.shape == (vlm.model.config.text_config.vocab_size,)
    assert first.dtype == torch.float32
    assert int(first.argmax()) == whole.tokens[0]
    assert float(first.exp().sum()) == pytest.approx(1, abs=1e-3)


def test_a_notebook_shows_a_table_and_the_picture(dropped, whole):
    page = dropped._repr_html_()
    for words in (QUESTION, "36KUM", "Retention", "FLOPs", "KV cache", "data:image/webp;base64,"):
        assert words in page
    assert "<img" not in whole._repr_html_()  # nothing was dropped: nothing to draw
    assert "Method" not in whole._repr_html_()


def test_a_notebook_runs_no_code_of_a_question_or_an_answer(vlm, demo):
    evil = "<script>alert('x')</script>"
    answer = vlm.ask(demo, evil, choices=[evil, "no <b>thing"], method="v2drop")
    page = answer._repr_html_()
    assert "<script" not in page
    assert "<b>thing" not in page
    assert "&lt;script&gt;" in page
