"""What follows from stages: plans, order, what is read, remembered and cached."""

import torch
from hypothesis import given, strategies as st

from foveate.contract import (
    Arriving,
    Attention,
    CacheStage,
    Hidden,
    ImageStage,
    Keys,
    LayerStage,
    PixelStage,
    Text,
    TowerAttention,
    follow,
)
from foveate.core.cut import Cut

DEPTH = 6


def some(view, count):
    return Cut.take(torch.arange(count), len(view))


def share(layer, keep, unit="sample"):
    return LayerStage(layer, keep=keep, choose=some, unit=unit)


def plan(*stages, sizes=(10,), grids=None):
    return follow.layer_plan(follow.in_order(stages), DEPTH, sizes, grids)


# -- plans -----------------------------------------------------------------------------------------------------


def test_shares_compound():
    assert plan() == (10,) * 6
    assert plan(share(2, 0.5)) == (10, 10, 5, 5, 5, 5)
    assert plan(share(4, 0.5), share(1, 0.5)) == (10, 5, 5, 5, 2, 2)
    assert plan(share(2, 0.5), share(2, 0.5)) == (10, 10, 2, 2, 2, 2)


def test_a_count_sees_what_entered_and_what_started():
    third = ImageStage(count=lambda a: a.entered // 3, choose=some)
    half = LayerStage(3, count=lambda a: a.started // 2, choose=some)
    assert plan(half, third) == (3, 3, 3, 1, 1, 1)
    assert plan(half) == (10, 10, 10, 5, 5, 5)
    tenth = LayerStage(3, count=lambda a: a.entered // 10, choose=some)
    assert plan(tenth, third) == (3, 3, 3, 1, 1, 1)


def test_images_are_counted_one_by_one_where_a_stage_goes_by_image():
    assert plan(share(2, 0.5, "image"), sizes=(5, 5)) == (10, 10, 4, 4, 4, 4)
    assert plan(share(2, 0.5, "frame"), sizes=(5, 5)) == (10, 10, 4, 4, 4, 4)
    assert plan(share(2, 0.5), sizes=(5, 5)) == (10, 10, 5, 5, 5, 5)
    assert plan(ImageStage(count=lambda a: a.tokens // 2, choose=some), sizes=(5, 4)) == (4,) * 6
    assert plan(ImageStage(keep=0.5, choose=some), sizes=(5, 4)) is None  # newlines may be among them


def test_behind_a_cut_over_all_images_nobody_knows_how_many_each_has_left():
    assert plan(share(2, 0.5), share(4, 0.5, "image"), sizes=(5, 5)) is None
    assert plan(share(2, 0.5), share(4, 0.5, "image"), sizes=(10,)) == (10, 10, 5, 5, 2, 2)
    assert plan(share(2, 1.0), share(4, 0.5, "image"), sizes=(5, 5)) == (10, 10, 10, 10, 4, 4)


def test_where_the_picture_decides_there_is_no_plan():
    assert plan(LayerStage(2, choose=some)) is None
    assert plan(ImageStage(choose=some), share(2, 0.5)) is None
    assert plan(LayerStage(2, choose=some), sizes=()) == (0,) * 6


def test_a_look_takes_nobody_away():
    look = LayerStage(2, look=lambda view: {})
    assert plan(look, share(4, 0.5)) == (10, 10, 10, 10, 5, 5)
    assert follow.cut_layers((look, share(4, 0.5))) == (4,)


def test_a_smaller_picture_has_the_cells_of_its_grids_and_a_closing_newline():
    seen = []

    def coarsen(arriving):
        seen.append(arriving.reserved)
        return tuple((1, columns) for _, columns in arriving.grids)

    def left(arriving):
        return sum(rows * columns for rows, columns in coarsen(arriving)) if arriving.grids else None

    pixels = PixelStage(coarsen=coarsen, count=left)
    assert plan(pixels) is None  # its grid is not known
    assert plan(pixels, sizes=(6,), grids=[((2, 3),)]) == (3,) * 6
    assert plan(pixels, share(3, 0.5), sizes=(6, 4), grids=[((2, 3),), ((2, 2),)]) == (5, 5, 5, 2, 2, 2)
    assert 1 not in seen
    assert plan(pixels, sizes=(7,), grids=[((2, 3),)]) == (4,) * 6
    assert seen[-1] == 1
    arriving = Arriving(6, 6, 6, grids=((2, 3), (2, 3)))
    assert follow.coarse_grids((pixels, share(1, 0.5)), arriving) == ((1, 3), (1, 3))
    assert follow.coarse_grids((share(1, 0.5),), arriving) == ((2, 3), (2, 3))


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    cuts=st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), max_size=4),
)
def test_a_plan_never_grows(sizes, cuts):
    stages = [share(layer, keep) for layer, keep in cuts]
    counts = plan(*stages, sizes=tuple(sizes))
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] <= sum(sizes)
    assert counts[-1] >= 1


# -- who cuts, reads and remembers -----------------------------------------------------------------------------


def test_caches_are_cut_from_the_layer_before_the_first_cut_up_to_the_last():
    cuts = (share(3, 0.5), share(5, 0.5))
    assert list(follow.cached_layers((*cuts, CacheStage()))) == [2, 3, 4]
    assert list(follow.cached_layers((*cuts, CacheStage(first_layer=1)))) == [1, 2, 3, 4]
    assert list(follow.cached_layers((*cuts, CacheStage(first_layer=4), CacheStage(first_layer=3)))) == [3, 4]
    assert list(follow.cached_layers(cuts)) == list(follow.cached_layers((CacheStage(),))) == []
    assert list(follow.cached_layers((share(0, 0.5), CacheStage()))) == []


def test_text_is_read_where_a_signal_says_so():
    assert not follow.reads_text(
        (LayerStage(2, reads=(Hidden(back=1), Keys(), Attention(rows="vision")), choose=some),)
    )
    assert not follow.reads_text((ImageStage(reads=(TowerAttention(),), choose=some),))
    assert follow.reads_text((share(1, 0.5), LayerStage(2, reads=(Attention(rows="last"),), choose=some)))
    assert follow.reads_text((ImageStage(reads=(Text(),), choose=some),))
