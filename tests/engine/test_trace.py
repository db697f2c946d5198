import itertools
import json
import pickle
import re

import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.engine import doors, session
from foveate.methods.sparsevlm import SparseVLM
from tests.models import batch, generate, tiny

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4))


def test_a_trace_goes_to_json():
    with fv.drop(tiny("llava"), METHOD) as trace:
        generate(tiny("llava"), batch("llava", ["titit", "tt"]))
    told = json.loads(trace.to_json())
    assert told["vision_tokens"] == [50, 0]
    assert told["retention"] == trace.retention
    first = {"where": "layer", "layer": 1, "before": [50, 0], "after": [25, 0]}
    assert told["stages"][0].items() >= first.items()
    assert len(told["stages"][1]["kept"][0]) == 10
    assert told["kv_lengths"] == trace.kv_lengths


def test_kept_are_ordinals_of_the_sample_as_it_entered():
    with fv.drop(tiny("llava"), METHOD) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", ["titit"]))
    first, second = (set(stage.kept[0].tolist()) for stage in trace.stages)
    assert second < first <= set(range(50))
    assert trace.stages[0].kept[0].device.type == "cpu"
    assert trace.stages[0].kept[0].dtype == torch.int64


def test_history_holds_every_prefill_and_the_trace_the_latest():
    with fv.drop(tiny("llava"), METHOD) as trace:
        for words in (["ti"], ["titi"], ["tt"]):
            generate(tiny("llava"), batch("llava", words), new_tokens=2)
    assert [prefill.vision_tokens for prefill in trace.history] == [(25,), (50,), (0,)]
    assert trace.retention == [1.0]
    assert "3 to" not in repr(trace)


def test_what_stays_on_for_weeks_remembers_its_latest_prefills(monkeypatch):
    monkeypatch.setattr(doors, "LATEST", 2)
    model = tiny("llava")
    trace = fv.apply(model, METHOD)
    try:
        for words in (["ti"], ["titi"], ["tt"]):
            generate(model, batch("llava", words), new_tokens=2)
    finally:
        fv.remove(model)
    assert [prefill.vision_tokens for prefill in trace.history] == [(50,), (0,)]


@pytest.mark.parametrize(
    ("method", "budget"), [("divprune", {"tokens": 100_000}), ("v2drop", {"tokens": 50}), ("evs", {"retention": 0.5})]
)
def test_a_budget_that_leaves_every_token_is_told_at_the_callers_line(method, budget):
    with pytest.warns(UserWarning, match="no token") as said, fv.drop(tiny("llava"), method, **budget):
        generate(tiny("llava"), batch("llava", ["titit"]), new_tokens=2)
    assert [warning.filename for warning in said] == [__file__]


@pytest.mark.parametrize(("words", "retention"), [("titit", 1.0), ("titit", 0.5), ("tt", 0.5)])
def test_nothing_is_told_where_tokens_left_or_all_were_to_stay_or_none_came(words, retention):
    with fv.drop(tiny("llava"), "divprune", retention=retention):
        generate(tiny("llava"), batch("llava", [words]), new_tokens=2)


def test_its_repr_says_what_happened():
    with fv.drop(tiny("llava"), METHOD) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", ["ti"]))
    assert repr(trace) == "Trace(retention 40.7%; before layer 1: 25 to 12; before layer 3: 12 to 4)"


def test_history_is_short_in_training(monkeypatch):
    monkeypatch.setattr(session, "LATEST", 2)
    model, inputs = tiny("llava"), batch("llava", ["ti"])
    with fv.drop(model, METHOD) as trace:
        with torch.no_grad():
            for _ in range(4):
                model(**inputs)
        assert len(trace.history) == 4
        for _ in range(3):
            model(**inputs)
        assert len(trace.history) == 2


@pytest.mark.parametrize(("family", "words"), [("llava", "tit"), ("video_llava", "tvt")])  # the latter keeps CLS rows
def test_tokens_that_merge_after_others_left_are_named_as_they_entered(family, words):
    method = fv.Chain.of(fv.FastV(layers=(1,), keep=(0.6,)), SparseVLM(pruning_layers=(3,), targets=(5,), reference=25))
    with fv.drop(tiny(family), method) as trace, torch.no_grad():
        tiny(family)(**batch(family, [words]))
    first, *_, last = trace.cuts
    (origin,), (assign,), (merged,) = last.origin, last.assign, last.merged
    assert first.assign == [None]
    assert [tokens.tolist() for tokens in first.merged[0]] == first.origin[0][:, None].tolist()
    assert len(assign) == trace.vision_tokens[0]
    assert set((assign >= 0).nonzero()[:, 0].tolist()) <= set(first.kept[0].tolist())
    assert all(token in tokens for token, tokens in zip(origin.tolist(), map(torch.Tensor.tolist, merged), strict=True))
    assert max(map(len, merged)) > 1


def test_a_record_keeps_indices_and_no_rows():
    with fv.drop(tiny("llava"), SparseVLM(pruning_layers=(1, 3), targets=(12, 5), reference=25)) as trace:
        tiny("llava")(**batch("llava", ["tit"]))
    steps = [step for stage in trace.stages for parts in stage._ancestries for part in parts for step in part.steps]
    assert {(tensor.dtype, tensor.dim()) for tensor in itertools.chain(*steps)} == {(torch.int64, 1)}


def test_a_record_that_an_earlier_version_pickled_is_read():
    with fv.drop(tiny("llava"), SparseVLM(pruning_layers=(1, 3), targets=(12, 5), reference=25)) as trace:
        generate(tiny("llava"), batch("llava", ["titit", "tt"]), new_tokens=2)
    for stage in trace.stages:
        state = {name: value for name, value in vars(stage).items() if name in ("where", "layer", "before", "after")}
        earlier = fv.StageRecord.__new__(fv.StageRecord)
        earlier.__setstate__({**state, "rows": False, "_origin": stage.origin, "_assign": stage.assign})
        assert pickle.loads(pickle.dumps(earlier)).to_dict() == stage.to_dict()


def test_a_sample_without_pictures_has_no_frames():
    with fv.drop(tiny("llava_onevision"), METHOD) as trace, torch.no_grad():
        tiny("llava_onevision")(**batch("llava_onevision", ["tvt", "tt"]))
    assert trace.kept_by_frame(1) == [(), ()]
    assert json.loads(trace.to_json())["kept_by_frame"][1] == [[], []]


def cells(html):
    """The text of every row of an HTML table, and what stands below it."""
    rows = re.findall("<tr>(.*?)</tr>", html)
    notes = re.findall("<div[^>]*>(.*?)</div>", html)
    return [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows], notes


def test_show_draws_the_part_the_processor_cut_out(tmp_path):
    picture = Image.new("RGB", (200, 100), "white")
    picture.paste((255, 0, 0), (0, 0, 50, 100))  # outside the centre square
    picture.save(tmp_path / "wide.png")
    with fv.drop(tiny("llava"), METHOD) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", ["ti"]))
    drawn = trace.show(tmp_path / "wide.png")
    colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 24)}
    assert (255, 0, 0) not in colours
    assert drawn.width > drawn.height


def test_a_mask_that_leaves_far_fewer_than_the_budget_says_so():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with torch.no_grad(), fv.drop(model, fv.V2Drop(layers=(1, 3), keep=(0.5, 0.1))) as trace:
        model(**inputs)
    with pytest.warns(UserWarning, match="pooled"):
        assert trace.pooling_mask.sum() > 0
    with torch.no_grad(), fv.drop(model, "divprune") as trace:
        model(**inputs)
    assert trace.pooling_mask.sum() > 0  # filterwarnings lets no warning pass
