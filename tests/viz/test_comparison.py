"""Several methods on one page: the pictures once, a row a method, a panel a stage that changed something."""

import pytest
from PIL import Image

import foveate as fv
from foveate.errors import ShapeError
from foveate.viz import draw_comparison
from foveate.viz.canvas import Page
from foveate.viz.mosaic import MOST, SIDE
from tests.viz.test_frames import RED, pixels_of
from tests.viz.test_showing import brightest, clip, run

BLUE = (20, 20, 230)
HALF = fv.Uniform(layers=(1,), keep=(0.5,))
TWO_CUTS = fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4))


def record(word="ti", method=TWO_CUTS, family="llava"):
    return run(family, word, method).latest


def red(size=(60, 60)):
    return Image.new("RGB", size, RED)


def test_the_picture_is_drawn_once_and_a_row_a_method_with_a_panel_a_stage():
    page = draw_comparison([("two cuts", record()), ("one", record(method=HALF))], red())
    parts = 1 + 12 / 25 + 4 / 25 + 13 / 25  # the picture; the cuts of the first; the cut of the second
    assert pixels_of(page, RED) == pytest.approx(parts * SIDE * SIDE, rel=0.06)


def test_a_stage_that_dropped_nothing_has_no_panel():
    idle = fv.Uniform(layers=(1, 3), keep=(1.0, 0.5))
    one, both = (draw_comparison([("", record(method=method))], red()) for method in (HALF, idle))
    assert one.width == both.width
    everything = draw_comparison([("all", record(method=fv.Uniform(layers=(1,), keep=(1.0,))))], red())
    assert pixels_of(everything, RED) == SIDE * SIDE
    assert everything.height < both.height


def test_of_a_clip_some_frames_are_drawn():
    many, few = (draw_comparison([("", record("t" + "i" * count, HALF))], clip(count).frames) for count in (12, MOST))
    assert many.size == few.size
    assert brightest(many) > 0


def test_merged_tokens_have_their_legend():
    merging = fv.MustDrop(pruning_layers=(1, 3), merge_window=2, merge_threshold=-1, global_thr=0.1, individual_thr=0.2)
    page = draw_comparison([("", record("tit", merging))], Image.new("RGB", (60, 60), (200, 200, 200)))
    assert len(page.getcolors(1 << 20)) > 100


def test_cuts_between_layers_say_why_few_tokens_can_be_enough(monkeypatch):
    written = []
    write = Page.write
    monkeypatch.setattr(Page, "write", lambda self, text, *a, **k: written.append(text) or write(self, text, *a, **k))
    draw_comparison([("before the decoder", record(method=fv.DivPrune(tokens=5)))], red())
    assert "Earlier layers" not in written[-1]
    draw_comparison([("before the decoder", record(method=fv.DivPrune(tokens=5))), ("two cuts", record())], red())
    assert "Earlier layers" in written[-1]


def test_without_a_method_there_is_nothing_to_draw():
    with pytest.raises(ShapeError, match="no method"):
        draw_comparison([], red())
