"""What scoring costs: a method's own arithmetic, and the signals that no layer computes anyway."""

from dataclasses import dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

import foveate as fv
from foveate.contract import Attention, Hidden, ImageStage, Keys, LayerStage, OwnSignal, Products, Shape, follow
from foveate.core.signals import Signal, TowerSignal
from foveate.cost._scoring import scoring_flops
from tests.contract.test_follow import some


def scoring(method, depth, width, sizes):
    return scoring_flops(follow.in_order(method.stages(Shape(depth, cls=True))), depth, width, sizes)


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
    assert scoring_flops((first, second), 6, 32, (15, 25)) == products[0]
    assert scoring_flops((second,), 6, 32, (10, 10)) == products[1]


def test_what_a_layer_makes_itself_costs_nothing():
    ran = LayerStage(2, reads=(Attention(rows="vision", layer="ran"), Hidden(back=1)), keep=0.5, choose=some)
    assert scoring_flops((ran,), 6, 32, (10,)) == 0
    last = LayerStage(2, reads=(Attention(rows="last", layer="next"),), keep=0.5, choose=some)
    assert scoring_flops((last,), 6, 32, (10,)) == (1 + 10) * 2 * 32**2 + 2 * 10 * 32


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
        flops = scoring_flops((reading(signal),), 6, 32, (10,))
        assert (flops > 0) is (signal in {Keys(), Products(), Attention(layer="next")})
        if isinstance(signal, Attention):
            rows = 10 if signal.rows == "vision" else 1
            ahead = reading(replace(signal, layer="next"))
            assert scoring_flops((ahead,), 6, 32, (10,)) == (rows + 10) * 2 * 32**2 + 2 * rows * 10 * 32


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
            scoring_flops((place(signal),), 6, 32, (10,))
