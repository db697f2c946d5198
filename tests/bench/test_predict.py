"""Prediction by arithmetic: what dropping promises for long and short prompts, and where weights bound it."""

import pytest

import foveate as fv
from foveate.bench.predict import forecast, forecast_sheet, forecasts, verdict
from foveate.bench.shapes import shape
from foveate.bench.workload import PromptRequest, synthetic


def promised(tokens, text_tokens=40, batch=1, device="cpu", name="llava-1.5-7b"):
    known = shape(name)
    config, workload = known.make_config(), synthetic(known, PromptRequest(text_tokens=text_tokens))
    method = fv.V2Drop.for_budget(config, tokens=tokens, vision_tokens=workload.vision_tokens)
    whole = workload.cost(config)
    return {"name": "it"} | forecast(workload.cost(config, method), whole, batch, device), whole


def test_a_usual_prompt_pays():
    found, whole = promised(128)
    assert found["prefill_speed"] == pytest.approx(3.7, abs=0.1)
    assert found["bound_speed"] == pytest.approx(found["prefill_speed"], rel=0.01)
    assert 1.5 < found["first_speed"] < found["prefill_speed"]
    assert found["tokens"] == pytest.approx(128, abs=1)
    said = verdict([{}, found | {"name": "v2drop 128"}], whole)
    assert said.startswith("Dropping pays for this prompt: ")
    assert "v2drop 128" in said
    assert "94% of the prompt are vision tokens" in said


def test_a_long_text_hardly_pays():
    found, whole = promised(192, text_tokens=8000)
    assert found["first_speed"] < 1.1
    assert verdict([{}, found], whole).startswith("Dropping hardly pays for this prompt")


def test_few_rows_on_an_accelerator_leave_the_time_of_reading_weights():
    one, whole = promised(64, device="cuda")
    many, _ = promised(64, device="cuda", batch=32)
    assert one["bound_speed"] < 0.6 * one["prefill_speed"]
    assert many["bound_speed"] == pytest.approx(many["prefill_speed"], rel=0.02)
    assert "reading the weights" in verdict([{}, one], whole)
    assert "reading weights" not in verdict([{}, many], whole)


def test_the_best_row_is_named_and_none_is_no_prediction():
    low, whole = promised(64)
    high, _ = promised(384)
    assert "(low)" in verdict([{}, high | {"name": "high"}, low | {"name": "low"}], whole)
    assert "cannot tell" in verdict([{}], whole)


def test_the_cache_shrinks_as_counted():
    found, _ = promised(192)
    method = fv.V2Drop.for_budget(shape("llava-1.5-7b").make_config(), tokens=192)
    rows = [40 + count for count in method.plan(32, (576,))]
    assert found["kv_ratio"] == pytest.approx(32 * 616 / sum(rows))


def test_of_a_video_those_are_predicted_that_its_frames_decide():
    known = shape("llava-onevision-7b")
    film = synthetic(known, PromptRequest(frames=32))
    methods = {"evs": fv.EVS(q=0.75), "dycoke": fv.DyCoke(k=0.7), "vidcom2": fv.VidCom2(keep=0.25)}
    rows = forecasts(known.make_config(), film, methods, "sdpa", "cpu")
    # What the frames show decides VidCom2's rule.
    assert [row["name"] for row in rows] == ["untouched", "evs", "dycoke"]
    assert rows[1]["kv_ratio"] == pytest.approx((6273 + 40) / (1569 + 40))
    assert rows[0]["prefill_speed"] == rows[0]["kv_ratio"] == 1
    assert [line[0] for line in forecast_sheet(rows, "").rows] == ["untouched", "evs", "dycoke"]
