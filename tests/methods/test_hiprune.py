import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Arriving, ImageView, Shape, TowerAttention
from foveate.core.grid import neighbours_of
from foveate.methods.hiprune import DEEP, HiPrune
from tests.models import batch, tiny

EXAMPLES = [HiPrune(retention=0.4, alpha=0.5), HiPrune(tokens=7, alpha=1.0), HiPrune(retention=0.3, positions="keep")]
KEEP_ALL = HiPrune(retention=1.0)
SMALLEST = HiPrune(tokens=1)
MIDDLE = TowerAttention(by="patches", block=8, of=24)


def view_of(middle, deep, grids, entered=None):
    tokens = len(middle)
    arriving = Arriving(tokens, entered or tokens, tokens, grids=grids)
    return ImageView(torch.zeros(tokens, 2), grids=grids, arriving=arriving, signals={MIDDLE: middle, DEEP: deep})


def random_view(tokens, seed, grids=()):
    middle, deep = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed))
    return view_of(middle, deep, grids)


def kept(method, view):
    (stage,) = method.stages(Shape(depth=32, cls=True))
    cut = stage.cut(view)
    return list(range(len(view))) if cut is None else cut.source.tolist()


# -- an example ----------------------------------------------------------------------------------------------------


def test_a_grid_of_four_by_four_by_hand():
    """Ten of sixteen with α = 1 have 10 · 1 / 5 = 2 anchors.

    The anchors 3 (a corner) and 10 have the buffers 2 and 7, and 6, 14, 9 and 11: eight patches. 0 and 15 are the two
    registers: the deep layer likes 3 and 10 as much, but these stay already. 4, right of 3 in raster order, is in the
    next row, and no buffer.
    """
    middle, deep = torch.zeros(16), torch.zeros(16)
    middle[3], middle[10] = 0.9, 0.8
    deep[[0, 3, 10, 15]] = 0.5
    deep[4] = 0.4
    view = view_of(middle, deep, ((4, 4),))
    assert kept(HiPrune(tokens=10, alpha=1.0), view) == [0, 2, 3, 6, 7, 9, 10, 11, 14, 15]


def test_buffers_that_do_not_fit_are_those_of_the_lowest_attention():
    """Three of nine with α = 1 have one anchor, 4, and room for two of its four buffers: 7 and 3."""
    middle = torch.tensor([0.0, 0.1, 0, 0.3, 0.9, 0.2, 0, 0.4, 0])
    view = view_of(middle, torch.arange(9.0), ((3, 3),))
    assert kept(HiPrune(tokens=3, alpha=1.0), view) == [3, 4, 7]


def test_without_anchors_the_deep_layer_decides():
    view = random_view(25, 0, ((5, 5),))
    highest = sorted(view[DEEP].sort(descending=True).indices[:7].tolist())
    assert kept(HiPrune(tokens=7, alpha=0.1), view) == highest  # 7 · 0.1 / 5 rounds to none
    assert kept(HiPrune(tokens=7, alpha=0.0), view) == highest


def reference(middle, deep, grid, count, alpha):
    """The description with sets, one patch at a time."""
    rows, columns = grid
    order = sorted(range(len(middle)), key=lambda patch: (-middle[patch].item(), patch))
    anchors = order[: min(count, round(count * alpha / 5))]
    buffers = set()
    for anchor in anchors:
        row, column = divmod(anchor, columns)
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if 0 <= row + down < rows and 0 <= column + right < columns:
                buffers.add((row + down) * columns + column + right)
    chosen = list(anchors) + [patch for patch in order if patch in buffers and patch not in anchors]
    rest = sorted(set(range(len(deep))) - set(chosen), key=lambda patch: (-deep[patch].item(), patch))
    return sorted((chosen + rest)[:count])


@given(
    rows=st.integers(1, 8), columns=st.integers(1, 8), alpha=st.floats(0, 1), seed=st.integers(0, 2**16), data=st.data()
)
def test_it_is_the_description_patch_by_patch(rows, columns, alpha, seed, data):
    count = data.draw(st.integers(1, rows * columns))
    view = random_view(rows * columns, seed, ((rows, columns),))
    found = kept(HiPrune(tokens=count, alpha=alpha), view)
    assert found == reference(view[MIDDLE], view[DEEP], (rows, columns), count, alpha)


def test_ties_go_to_the_lower_patch():
    view = view_of(torch.ones(9), torch.ones(9), ((3, 3),))
    assert kept(HiPrune(tokens=5, alpha=1.0), view) == [
        0,
        1,
        2,
        3,
        4,
    ]  # the anchor 0, its buffers, then 2 and 4


# -- counts, crops and grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "anchors"), [(192, 4), (128, 3), (64, 1)])
def test_the_published_settings(budget, anchors):
    method = fv.preset(f"hiprune/llava-1.5-7b/{budget}")
    view = random_view(576, 1, ((24, 24),))
    found = kept(method, view)
    assert len(found) == budget
    assert set(method.plan(32, (576,))) == {budget}
    highest = view[MIDDLE].sort(descending=True).indices[:anchors].tolist()
    neighbours = neighbours_of(((24, 24),), 576)[highest].flatten().tolist()
    assert {*highest, *neighbours} - {576} <= set(found)
    assert set(HiPrune().plan(32, (576,))) == {192}


def test_each_crop_has_its_share():
    """Five crops of 576: 640 / 5 each, as the released code divides k; buffers may be in the next crop."""
    grids = ((24, 24), (48, 48))
    found = kept(fv.preset("hiprune/llava-next-7b/640"), view := view_of(*random_scores(2880), grids, 2928))
    base = [patch for patch in found if patch < 576]
    assert (len(found), len(base)) == (640, 128)
    # The base view has no neighbour in another crop: it is as an image of its own.
    assert base == reference(view[MIDDLE][:576], view[DEEP][:576], (24, 24), 128, 0.1)


def random_scores(tokens):
    return torch.rand(2, tokens, generator=torch.Generator().manual_seed(5))


def test_neighbours_stay_in_their_grid_and_their_row():
    table = neighbours_of(((2, 2), (1, 3)), 7)
    assert table.tolist() == [
        [7, 2, 7, 1],
        [7, 3, 0, 7],
        [0, 7, 7, 3],
        [1, 7, 2, 7],
        [7, 7, 7, 5],
        [7, 7, 4, 6],
        [7, 7, 5, 7],
    ]
    assert neighbours_of((), 3).tolist() == [[3] * 4] * 3  # not known: none has any


def test_where_the_grid_is_not_known_anchors_have_no_buffers():
    middle, deep = torch.zeros(10), torch.zeros(10)
    middle[4], deep[[0, 9]] = 1.0, 1.0
    assert kept(HiPrune(tokens=3, alpha=1.0), view_of(middle, deep, ())) == [0, 4, 9]


@given(tokens=st.integers(1, 600), share=st.floats(0.001, 1.0))
def test_a_budget_is_met_exactly(tokens, share):
    if share == 1:
        assert HiPrune(retention=share).stages(Shape(depth=32)) == ()
        return
    assert len(kept(HiPrune(retention=share), random_view(tokens, tokens))) == max(1, int(share * tokens + 0.5))


def test_wrong_settings_are_refused():
    with pytest.raises(fv.SettingError, match="object_layer should be less than or equal to 23"):
        HiPrune(object_layer=24)
    with pytest.raises(fv.SettingError):
        HiPrune(alpha=1.5)


# -- on models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_two_blocks_are_read_in_towers_with_and_without_a_cls(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    with fv.drop(model, HiPrune(retention=0.4, alpha=1.0)) as trace, torch.no_grad():
        model(**inputs)
    (stage,) = trace.stages
    assert stage.after[0] == int(0.4 * stage.before[0] + 0.5)
    assert stage.origin[0].tolist() == sorted(stage.origin[0].tolist())
