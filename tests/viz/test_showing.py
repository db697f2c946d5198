"""A prefill drawn on its pictures and clips: a contact sheet a stage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.families.base import Family
from foveate.video import Clip
from tests.models import batch, tiny

METHOD = fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4))


def run(family, word, method=METHOD):
    with fv.drop(tiny(family), method) as trace, torch.no_grad():
        tiny(family)(**batch(family, [word]))
    return trace


def clip(count, size=(32, 24)):
    """Frames from dark to bright red, half a second each."""
    frames = np.zeros((count, size[1], size[0], 3), np.uint8)
    frames[..., 0] = np.linspace(60, 250, count).round()[:, None, None]
    return Clip(Path("clip.mp4"), frames, tuple(0.5 * at for at in range(count)), 0.0, 0.5 * count, 2.0)


def brightest(picture):
    """How many pixels are as red as the clip's frames."""
    pixels = np.asarray(picture).astype(int)
    return int(((pixels[..., 0] > 55) & (pixels[..., 1:].max(axis=-1) < 5)).sum())


def test_a_clip_is_drawn_as_sheets_above_a_histogram():
    trace = run("llava_onevision", "tvt")
    drawn = trace.show(clip(3))
    assert drawn.size == trace.show(clip(3).frames).size == trace.show(clip(3).images()).size
    whole = run("llava_onevision", "tvt", fv.Uniform(layers=(1,), keep=(1.0,))).show(clip(3))
    red, all_red = brightest(drawn), brightest(whole)  # three sheets: 28 + 14 + 5 of 28; two: 28 + 28 of 28
    assert red / all_red == pytest.approx((28 + 14 + 5) / 56, abs=0.04)


def test_two_frames_that_the_model_makes_one_of_are_one_in_the_sheet():
    trace = run("qwen2_vl", "tvt")
    assert trace.show(clip(6)).size == trace.show(clip(5)).size == trace.show(clip(3)).size
    assert brightest(trace.show(clip(6))) == pytest.approx(brightest(trace.show(clip(3))), rel=0.01)


def test_clips_that_are_not_the_samples_are_refused():
    with pytest.raises(fv.InputError, match="got 7"):
        run("llava_onevision", "tvt").show(clip(7))
    with pytest.raises(fv.InputError, match="for 2"):
        run("llava", "tiiit").show(clip(2))
    with pytest.raises(fv.InputError, match="for 1"):
        run("qwen2_vl", "titvt").show(Image.new("RGB", (9, 9)))


def test_where_nobody_knows_where_tokens_look_they_are_not_drawn(monkeypatch):
    monkeypatch.setattr("foveate.families.qwen_vl.Qwen2VL.pictures", Family.pictures)
    with pytest.raises(fv.InputError, match="known"):
        run("qwen2_vl", "tvt").show(clip(3))
