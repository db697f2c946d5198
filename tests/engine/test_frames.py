"""Which frames tokens are of: ranked by frame, counted by frame."""

import json

import pytest
import torch

import foveate as fv
from foveate.contract.budget import keep_count
from foveate.families.base import Family
from tests.models import FAMILIES, TINY, batch, tiny

FRAMES = {"qwen2_vl": (4, 4, 4), "qwen3_vl": (4, 4, 4), "llava_onevision": (9, 9, 10)}  # a newline ends the last
WITH_VIDEO = sorted(FRAMES)
METHOD = fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4))
SHORT = {"layers": (1, 3), "keep": (0.6, 0.5)}


def run(family, word, method=METHOD):
    with fv.drop(tiny(family), method) as trace, torch.no_grad():
        tiny(family)(**batch(family, [word]))
    return trace


def test_every_family_with_videos_says_where_their_frames_begin():
    known = {family for family in FAMILIES if TINY[family].videos}
    for family in known:
        if not hasattr(tiny(family).model, "get_video_features"):  # its frames are pictures
            continue
        frames = run(family, "tvt").latest.frames[0][0]
        assert len(frames) > 1, family
        if family in FRAMES:
            assert frames == FRAMES[family]


@pytest.mark.parametrize("family", WITH_VIDEO)
@pytest.mark.parametrize("word", ["tvt", "titvt"])
def test_by_frame_each_keeps_its_own_share(family, word):
    method = fv.V2Drop(**SHORT, scope="frame")
    trace = run(family, word, method)
    sizes = [size for one in trace.latest.frames[0] for size in one]
    assert sizes[-3:] == list(FRAMES[family])
    for kept, ratio in zip(trace.kept_by_frame(), SHORT["keep"], strict=True):
        sizes = [keep_count(size, ratio, 1) for size in sizes]
        assert kept == tuple(sizes)


@pytest.mark.parametrize("family", WITH_VIDEO)
def test_by_frame_those_that_moved_most_within_their_frame_stay(family):
    """Against the untouched model's own hidden states."""
    inputs = batch(family, ["tvt"])
    with torch.no_grad():
        states = tiny(family)(**inputs, output_hidden_states=True).hidden_states
    columns = (inputs["input_ids"][0] == 92).nonzero()[:, 0]
    moved = (states[1][0, columns] - states[0][0, columns]).norm(dim=-1)
    wanted, start = [], 0
    for size in FRAMES[family]:
        best = moved[start : start + size].argsort(descending=True)[: int(size * 0.5)]
        wanted += sorted((start + best).tolist())
        start += size
    kept = {
        scope: run(family, "tvt", fv.V2Drop(layers=(1,), keep=(0.5,), scope=scope)) for scope in ("frame", "sample")
    }
    assert kept["frame"].stages[0].kept[0].tolist() == wanted
    whole = moved.argsort(descending=True)[: int(len(moved) * 0.5)]
    assert kept["sample"].stages[0].kept[0].tolist() == sorted(whole.tolist()) != wanted


def test_where_nobody_knows_the_frames_ranking_by_frame_is_refused(monkeypatch):
    monkeypatch.setattr("foveate.families.qwen_vl.Qwen2VL.pictures", Family.pictures)
    with pytest.raises(fv.UnsupportedError, match="image"):
        run("qwen2_vl", "tvt", fv.V2Drop(**SHORT, scope="frame"))
    trace = run("qwen2_vl", "tvt")
    assert trace.kept_by_frame() == []


def test_a_trace_of_a_video_tells_what_each_frame_has_left():
    trace = run("qwen2_vl", "titvt")
    told = json.loads(trace.to_json())["kept_by_frame"]
    assert told == [[list(counts) for counts in trace.kept_by_frame()]]
    assert [sum(counts) for counts in told[0]] == [stage.after[0] for stage in trace.stages]
    assert "kept_by_frame" not in run("qwen2_vl", "tit").to_dict()
