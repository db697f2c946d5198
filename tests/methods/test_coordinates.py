import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Cut, Hidden, LayerStage, LayerView, Rotary, Shape
from foveate.methods.coordinates import Coordinates, places
from foveate.naming import method_of
from tests.models import DEPTH, batch, tiny

EXAMPLES = [
    fv.FastV(layers=(2,), keep=(0.4,)) + Coordinates(),
    fv.Random(layers=(0, 3), keep=(0.6, 0.5), scope="image") + Coordinates(part=0.7),
]
KEEP_ALL = fv.Random(layers=(1,), keep=(1.0,)) + Coordinates()
SMALLEST = fv.Random(layers=(1,), keep=(0.01,)) + Coordinates()
SHAPE = Shape(depth=DEPTH)


def stage_of(method, part=0.4):
    (stage,) = (method + Coordinates(part=part)).stages(SHAPE)
    return stage


def kept(stage, rotary, attention):
    view = LayerView(signals={stage.reads[0]: attention, Rotary(): rotary})
    return stage.cut(view).source.tolist()


ROTARY = torch.tensor([[0.9, 0.0], [0.1, 0.8], [0.8, 0.1], [0.0, 0.9], [0.5, 0.5], [0.4, 0.4]], dtype=torch.float64)
"""By C the rows come 0 2 4 5 1 3, by S 3 1 4 5 2 0: in turn 0 3 2 1 4 5."""


def test_six_rows_by_hand():
    assert places(ROTARY).argsort().tolist() == [0, 3, 2, 1, 4, 5]
    attention = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.9, 0.8])
    half = fv.FastV(keep=(0.5,))  # three stay
    assert kept(stage_of(half), ROTARY, attention) == [0, 4, 5]  # c = round(1.2): the best two and place 0
    assert kept(stage_of(half, 0.6), ROTARY, attention) == [0, 3, 4]  # c = 2
    assert kept(stage_of(half, 1.0), ROTARY, attention) == [0, 3, 4]  # never all: c = count − 1
    assert kept(stage_of(half, 0.1), ROTARY, attention) == [2, 4, 5]  # c = round(0.3)
    # What the method picks itself is no place lost: the next place stays.
    assert kept(stage_of(half, 0.6), ROTARY, attention.flip(0)) == [0, 1, 3]


@given(seed=st.integers(0, 2**16), tokens=st.integers(2, 40), keep=st.floats(0.01, 0.99), part=st.floats(0.01, 1.0))
def test_counts_stay_and_what_comes_first_by_place_is_kept(seed, tokens, keep, part):
    rng = torch.Generator().manual_seed(seed)
    rotary, attention = torch.rand(tokens, 2, generator=rng), torch.rand(tokens, generator=rng)
    alone, stage = fv.FastV(keep=(keep,)), stage_of(fv.FastV(keep=(keep,)), part)
    count = alone.plan(DEPTH, (tokens,))[-1]
    if count == tokens:
        return
    picks = kept(stage, rotary, attention)
    more = min(round(part * count), count - 1)
    by_attention = attention.sort(descending=True, stable=True).indices.tolist()
    assert len(picks) == count
    assert set(places(rotary).argsort()[:more].tolist()) | set(by_attention[: count - more]) <= set(picks)


def test_no_part_is_the_method_bit_for_bit():
    model, inputs = tiny("llava"), batch("llava", ["titit", "tit"])
    logits = []
    for method in (fv.FastV(keep=(0.4,)), fv.FastV(keep=(0.4,)) + Coordinates(part=0)):
        with fv.drop(model, method), torch.no_grad():
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)


# -- what it stands around -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    ["fastv", "v2drop", "dart", "clse", "priortr", "random", "uniform", "sparsevlm_plus", "mfpruner"]
    + [f"{name}:positions=keep" for name in ("divprune", "cdpruner", "mmtok", "holov", "pyramiddrop")],
)
def test_plans_and_budgets_are_those_of_the_method_alone(method):
    alone = method_of(method, None, 0.3)
    chain = alone + Coordinates()
    assert chain.plan(32, (576,), [((24, 24),)]) == alone.plan(32, (576,), [((24, 24),)])


class Choosing(fv.Method):
    """Lets the picture decide how many stay."""

    name = "choosing"

    def stages(self, shape):
        return (LayerStage(2, reads=(Hidden(),), choose=lambda view, _: Cut.keep(view.hidden[:, 0] > 0)),)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (fv.DivPrune(keep=0.3), "positions='keep'"),
        (fv.PyramidDrop(positions="reindex"), "positions='keep'"),
        (fv.VisionZip(positions="keep"), "between tower and decoder"),
        (fv.VidCom2(), "between tower and decoder"),
        (Choosing(), "how many tokens stay"),
    ],
)
def test_what_it_cannot_stand_around_is_refused(method, why):
    with pytest.raises(fv.SettingError, match=why):
        (method + Coordinates()).stages(Shape(depth=32, cls=True))
    (method + Coordinates(part=0)).stages(Shape(depth=32, cls=True))


def test_where_positions_are_kept_anyway_nothing_is_renumbered():
    assert (fv.DivPrune(keep=0.3) + Coordinates()).stages(Shape(depth=28, renumbers=False))
    with fv.drop(tiny("qwen2_vl"), fv.DivPrune(keep=0.4) + Coordinates()) as trace, torch.no_grad():
        tiny("qwen2_vl")(**batch("qwen2_vl", ["tit"]))
    assert trace.stages[0].after[0] < trace.stages[0].before[0]


@pytest.mark.parametrize(
    "name", ["fastv:layers=2;keep=0.4;join=true;scope=image", "sparsevlm:pruning_layers=1;targets=9;positions=keep"]
)
def test_a_cut_that_merges_is_refused_where_it_merges(name):
    method = method_of(name) + Coordinates()
    with pytest.raises(fv.SettingError, match="merges"), fv.drop(tiny("llava"), method), torch.no_grad():
        tiny("llava")(**batch("llava", ["tit"]))


def test_what_drops_in_the_tower_in_pixels_or_in_caches_goes_beside_it():
    chain = fv.Resize(keep=0.5) + fv.FastV(keep=(0.5,)) + fv.FinalKV() + Coordinates()
    alone = fv.Resize(keep=0.5) + fv.FastV(keep=(0.5,)) + fv.FinalKV()
    assert [stage.place for stage in chain.stages(SHAPE)] == [stage.place for stage in alone.stages(SHAPE)]
