"""A stage by itself: what it refuses, which of four ways says who stays, and where it stands."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.contract import (
    Arriving,
    Attention,
    CacheStage,
    DecodeStage,
    Hidden,
    ImageStage,
    ImageView,
    LayerStage,
    LayerView,
    PatchStage,
    PixelStage,
    PixelView,
    ThinStage,
    TowerStage,
    follow,
)
from foveate.contract.stages import Place
from foveate.core.cut import Cut
from foveate.errors import SettingError
from foveate.testing.random_views import made_view


def attention(view):
    return view.attention


def scored(**settings):
    return LayerStage(2, reads=(Attention(),), score=attention, **settings)


def seen(*scores, **known):
    return LayerView(attention=torch.tensor(scores), **known)


# -- who stays -------------------------------------------------------------------------------------------------


def test_the_highest_scores_stay_in_order_and_ties_go_to_the_lower_index():
    assert scored(keep=0.5).cut(seen(0.1, 0.4, 0.3, 0.2)).source.tolist() == [1, 2]
    assert scored(count=lambda arriving: 3).cut(seen(1.0, 2.0, 1.0, 1.0, 2.0)).source.tolist() == [0, 1, 4]
    assert scored(keep=0.5).cut(seen(1.0, 1.0, 1.0, 1.0)).source.tolist() == [0, 1]


def test_a_share_is_truncated_and_never_below_one():
    assert scored(keep=0.29).cut(LayerView(attention=torch.rand(100))).count == 28
    assert scored(keep=0.0).cut(seen(0.1, 0.2)).source.tolist() == [1]
    assert scored(keep=1.0).cut(seen(0.1, 0.2)) is None


@given(tokens=st.integers(1, 40), count=st.integers(0, 60))
def test_a_count_is_never_more_than_arrive(tokens, count):
    stage = scored(count=lambda arriving: count)
    cut = stage.cut(LayerView(attention=torch.rand(tokens)))
    left = tokens if cut is None else cut.count
    assert left == stage.left(Arriving.all_of(tokens)) == min(count, tokens)


def test_a_count_may_look_at_all_that_the_host_knows():
    known = Arriving(tokens=6, entered=20, started=10, reserved=1, grids=((2, 3),))
    stages = [scored(count=lambda a, name=name: getattr(a, name)) for name in ("entered", "started", "reserved")]
    assert [stage.left(known) for stage in stages] == [6, 6, 1]  # no more than arrive
    assert scored(count=lambda a: a.started // 5).cut(seen(1.0, 2.0, 3.0, arriving=Arriving(3, 20, 10))).count == 2


def test_a_stage_may_give_a_whole_cut():
    stage = LayerStage(2, reads=(Attention(),), choose=lambda view, count: Cut.keep(view.attention > 0.25))
    assert stage.left(Arriving.all_of(4)) is None
    cut = stage.cut(seen(0.1, 0.4, 0.3, 0.2))
    assert cut.first(int(cut.count)).source.tolist() == [1, 2]


def test_a_stage_may_look_and_drop_nothing():
    stage = LayerStage(2, reads=(Attention(),), look=lambda view: {"paid": view.attention * 2})
    cut = stage.cut(seen(0.5, 1.0))
    assert cut.stays_whole
    assert cut.notes["paid"].tolist() == [1.0, 2.0]
    assert (stage.drops, stage.left(Arriving.all_of(7))) == (False, 7)


def test_notes_of_the_same_method_are_seen():
    stage = LayerStage(3, choose=lambda view, count: Cut.keep(view.notes["key"]))
    cut = stage.cut(LayerView(count=2, notes={"key": torch.tensor([False, True])}))
    assert cut.parent.tolist() == [-1, 0]


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 3])
def test_a_stage_that_leaves_another_number_than_it_counted_is_an_error(left):
    """As `select` once could, silently. Where all stay, a pick is not asked."""
    taken = torch.arange(left)
    picking = LayerStage(4, count=lambda arriving: 2, pick=lambda view, count: taken)
    cutting = replace(picking, pick=lambda view, count: Cut.take(taken, len(view)))
    choosing = replace(cutting, pick=None, choose=cutting.pick)
    for stage in (picking, cutting, choosing):
        with pytest.raises(SettingError, match=rf"LayerStage\(4\) keeps {left} of 5 tokens, but its count is 2"):
            stage.cut(LayerView(count=5))
    assert picking.cut(LayerView(count=2)) is None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"keep": 0.5, "choose": lambda view, count: Cut.keep(torch.arange(len(view)) < count - 1)}, "device"),
        ({"count": lambda arriving: 2, "choose": lambda view, count: None}, "keeps 5"),
        ({"choose": lambda view, count: Cut.take(torch.arange(2), 3)}, "got 5"),
        ({"reads": (Hidden(),), "keep": 0.5, "score": attention}, "attention"),  # it is not declared
    ],
)
def test_a_cut_that_is_none_is_refused(settings, word):
    with pytest.raises(SettingError, match=word):
        LayerStage(4, **settings).cut(LayerView(count=5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scored(), "neither keep nor count"),
        (lambda: scored(keep=0.5, count=lambda arriving: 2), "either keep or count"),
        (lambda: scored(keep=0.5, look=lambda view: {}), "several"),
        (lambda: LayerStage(2, reads=("attention",), keep=0.5, score=attention), "Signal"),
        (lambda: LayerStage(2, reads=(Attention,), keep=0.5, score=attention), "Signal"),
        (lambda: LayerStage(2, unit="frames"), "'image' or 'frame'"),
        (lambda: LayerStage(2, positions="renumber"), "positions"),
        (lambda: ImageStage(side="after"), "or 'behind'"),
        (lambda: LayerStage(2, reads=(Hidden(), Hidden(back=3))), "cannot read 3 layers back"),
        (lambda: LayerStage(0, reads=(Attention(layer="ran"),)), "cannot read 1 layers back"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(make, message):
    with pytest.raises(SettingError, match=message):
        make()


# -- where it stands -------------------------------------------------------------------------------------------


def nothing(view, count):
    return None


PIXELS = PixelStage(coarsen=lambda arriving: arriving.grids)
PATCHES, DEEPER = TowerStage(0, choose=nothing), TowerStage(2, choose=nothing)
BEFORE, BEHIND = ImageStage(choose=nothing), ImageStage(side="behind", choose=nothing)
FIRST, LATER = LayerStage(0, choose=nothing), LayerStage(5, choose=nothing)
CACHE, DECODE = CacheStage(), DecodeStage(0)
LIFE = (PIXELS, PATCHES, DEEPER, BEFORE, BEHIND, FIRST, LATER, CACHE, DECODE)


@given(st.permutations(LIFE))
def test_however_they_are_written_they_run_in_that_order(stages):
    assert follow.in_order(stages) == LIFE


def test_an_image_stage_sees_features():
    stage = ImageStage(keep=0.5, score=lambda view: view.features[:, 0])
    assert stage.cut(ImageView(torch.tensor([[1.0], [3.0], [2.0], [0.0]]))).source.tolist() == [1, 2]


@pytest.mark.parametrize("stage", [PatchStage, partial(TowerStage, 1), ThinStage], ids=str)
def test_a_cut_in_or_before_the_tower_has_no_notes(stage):
    noting = stage(keep=0.5, pick=lambda view, count: Cut.take(torch.arange(count), 4, {"norm": torch.ones(count)}))
    view = made_view(noting, 4) if noting.place is Place.TOWER else PixelView(torch.ones(1, 2, 2, 3), *torch.ones(2, 3))
    with pytest.raises(SettingError, match="notes"):
        noting.cut(view)
