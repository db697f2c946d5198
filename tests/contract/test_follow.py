"""What follows from stages: plans, order, what is read, remembered and cached, and what scoring costs."""

from dataclasses import dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import (
    Arriving,
    Attention,
    CacheStage,
    Hidden,
    ImageStage,
    Keys,
    LayerStage,
    OwnSignal,
    PixelStage,
    Products,
    Shape,
    Text,
    TowerAttention,
    follow,
)
from foveate.core.cut import Cut
from foveate.core.signals import Signal, TowerSignal

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


# -- what scoring costs ----------------------------------------------------------------------------------------


def scoring(method, depth, width, sizes):
    return follow.scoring_flops(follow.in_order(method.stages(Shape(depth, cls=True))), depth, width, sizes)


OPERATIONS = {"l2": 3, "l1": 3, "cosine": 6, "relative": 5}


@pytest.mark.parametrize("metric", OPERATIONS)
@pytest.mark.parametrize("sizes", [(576,), (100, 40), (7,)])
@pytest.mark.parametrize(("layers", "keep"), [((3, 17, 22), (0.5, 0.3, 0.0)), ((2, 4), (1.0, 0.2)), ((1,), (1.0,))])
def test_v2drop_pays_for_a_move_where_somebody_leaves(layers, keep, sizes, metric):
    method = fv.V2Drop(layers=layers, keep=keep, metric=metric)
    counts = (sum(sizes), *method.plan(32, sizes))
    moves = sum(counts[layer] for layer in layers if counts[layer + 1] < counts[layer])
    assert scoring(method, 32, 64, sizes) == OPERATIONS[metric] * 64 * moves


def test_v2drop_pays_for_a_path_at_every_layer_up_to_the_last_cut_once():
    method = fv.V2Drop(layers=(2, 4), keep=(0.5, 0.2), over="path")
    assert scoring(method, 6, 32, (50,)) == 3 * 32 * (50 + 50 + 25 + 25)
    assert scoring(fv.V2Drop(layers=(2, 4), keep=(1.0, 1.0), over="path"), 6, 32, (50,)) == 0


@pytest.mark.parametrize("sizes", [(576,), (576, 288, 30)])
@pytest.mark.parametrize("queries", [16, 35, 10_000])
def test_visiondrop_pays_for_the_queries_of_a_sample_of_rows_of_each_image(queries, sizes):
    width, total = 64, 0
    method = fv.VisionDrop(queries=queries)
    for layer in (8, 16, 24):
        images = [method.plan(32, (size,))[layer - 1] for size in sizes]
        asking = sum(min(queries, rows) for rows in images)
        total += 2 * (asking + sum(images)) * width**2 + 2 * asking * sum(images) * width
    assert scoring(method, 32, width, sizes) == total
    whole = scoring(fv.VisionDrop(), 32, width, sizes)
    assert (total == whole) is (queries == 10_000)
    assert total <= whole


def test_a_sample_of_rows_is_of_all_images_where_only_the_device_knows_how_many_of_each_are_left():
    paid = Attention(rows="vision", layer="next", sample=4)
    first = LayerStage(1, keep=0.5, reads=(Hidden(),), score=some)
    second = LayerStage(3, keep=0.5, reads=(paid,), score=some)
    products = [2 * (4 * images + 20) * 32**2 + 2 * 4 * images * 20 * 32 for images in (1, 2)]
    assert follow.scoring_flops((first, second), 6, 32, (15, 25)) == products[0]
    assert follow.scoring_flops((second,), 6, 32, (10, 10)) == products[1]


def test_what_a_layer_makes_itself_costs_nothing():
    ran = LayerStage(2, reads=(Attention(rows="vision", layer="ran"), Hidden(back=1)), keep=0.5, choose=some)
    assert follow.scoring_flops((ran,), 6, 32, (10,)) == 0
    last = LayerStage(2, reads=(Attention(rows="last", layer="next"),), keep=0.5, choose=some)
    assert follow.scoring_flops((last,), 6, 32, (10,)) == (1 + 10) * 2 * 32**2 + 2 * 10 * 32


def kinds(base=Signal):
    """Every kind of signal that `foveate.core.signals` declares."""
    below = [kind for kind in base.__subclasses__() if kind.__module__ == Signal.__module__]
    return [kind for each in below for kind in ([] if each is TowerSignal else [each]) + kinds(each)]


def declared():
    """Each signal with every value of each of its options, one option at a time."""
    yield OwnSignal(some)
    for kind in set(kinds()) - {OwnSignal}:
        yield kind()
        for name, hint in get_type_hints(kind).items():
            values = (True, False) if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
            yield from (kind(**{name: value}) for value in values)


def reading(signal):
    return LayerStage(3, reads=(signal,), keep=0.5, choose=some)


def test_the_flops_of_every_declared_option_are_known():
    signals = set(declared())
    assert len(signals) > 30
    for signal in signals:
        flops = follow.scoring_flops((reading(signal),), 6, 32, (10,))
        assert (flops > 0) is (signal in {Keys(), Products(), Attention(layer="next")})
        if isinstance(signal, Attention):
            rows = 10 if signal.rows == "vision" else 1
            ahead = reading(replace(signal, layer="next"))
            assert follow.scoring_flops((ahead,), 6, 32, (10,)) == (rows + 10) * 2 * 32**2 + 2 * rows * 10 * 32


@pytest.mark.parametrize("place", [reading, lambda signal: ImageStage(reads=(signal,), keep=0.5, choose=some)])
def test_an_option_or_a_signal_that_nobody_has_priced_is_refused(place):
    @dataclass(frozen=True)
    class Twice(Attention):
        twice: bool = False

    @dataclass(frozen=True)
    class Other(Signal):
        kind = "other"

    for signal, said in ((Twice(), r"Twice\(.*twice=False"), (Other(), "Other")):
        with pytest.raises(fv.UnsupportedError, match=said):
            follow.scoring_flops((place(signal),), 6, 32, (10,))
