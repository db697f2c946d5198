import pytest
import torch
from hypothesis import given, strategies as st

from foveate.contract import Arriving, Attention, ImageView, LayerView, Shape
from foveate.core.grid import windows_of
from foveate.core.rank import top_in_groups
from foveate.methods import vscan
from foveate.methods.vscan import VScan

EXAMPLES = [
    VScan(retention=0.4, window=3),
    VScan(tokens=6, layer=2, entry=2.0),
    VScan(retention=0.3, positions="keep"),
    VScan(keep=(0.6, 0.5), window=2),
]
KEEP_ALL = VScan(retention=1.0)
SMALLEST = VScan(tokens=1)


def stages_of(method, depth=32, **shape):
    return method.stages(Shape(depth=depth, **{"cls": True, **shape}))


# -- an example ----------------------------------------------------------------------------------------------------


def test_other_tokens_join_the_nearest_of_projected_features():
    features = torch.tensor([[2.0, 0], [0, 1], [4, 1], [0, 9], [1, 1.1]])
    view = ImageView(features, notes={"picked": torch.tensor([2.0, 2, 0, 0, 0])})
    cut = vscan.merge_others(view, 2)
    assert cut.source.tolist() == [0, 1]
    assert cut.parent.tolist() == [0, 1, 0, 1, 1]
    torch.testing.assert_close(cut.rows, torch.tensor([[3.0, 0.5], [1 / 3, 11.1 / 3]]))


def test_newlines_are_dropped_but_for_one_that_ends_the_image():
    """Families note 1 for a newline: it is neither picked nor merged, and stays only where the count has room."""
    features = torch.tensor([[1.0, 0], [0, 1], [1, 0.1], [1, 0]])
    view = ImageView(features, notes={"picked": torch.tensor([2.0, 0, 2, 1])})
    cut = vscan.merge_others(view, 2)
    assert cut.parent.tolist() == [0, 1, 1, -1]
    closing = vscan.merge_others(view, 3)
    assert closing.source.tolist() == [0, 2, 3]
    assert closing.parent.tolist() == [0, 1, 1, 2]  # nothing joins the newline, which is as the first token is
    assert closing.rows[2].tolist() == [1, 0]


def test_the_last_token_ranks_before_the_middle_layer():
    _, _, layer = stages_of(VScan(tokens=6), depth=4)
    assert (layer.layer, layer.reads) == (2, (Attention(rows="last", layer="next", heads="mean"),))
    view = LayerView(attention=torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0]), arriving=Arriving(5, 6, 5))
    assert layer.cut(view) is None  # a budget of all
    _, _, layer = stages_of(VScan(tokens=4), depth=4)
    view = LayerView(attention=torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0, 0.4]), arriving=Arriving(6, 20, 6))
    assert layer.cut(view).source.tolist() == [1, 5]  # six enter and two are left, four on average


# -- windows -------------------------------------------------------------------------------------------------------


def test_what_makes_no_whole_window_belongs_to_the_last():
    assert windows_of(((1, 5),), 2, 5).tolist() == [0, 0, 1, 1, 1]
    assert windows_of(((3, 3), (2, 4)), 2, 17).tolist() == [0] * 9 + [1, 1, 2, 2] * 2
    assert windows_of(((2, 3),), 10**30, 6).tolist() == [0] * 6
    assert windows_of((), 2, 3).tolist() == [0, 0, 0]  # not known: one window
    window = windows_of(((24, 24),), 6, 576)
    assert window.bincount().tolist() == [36] * 16


def test_windows_that_are_too_small_leave_more_to_the_global_scan():
    window = windows_of(((29, 29),), 10, 841)
    assert window.bincount().tolist() == [100, 190, 190, 361]
    near = torch.arange(841.0).flip(0)
    assert len(top_in_groups(near, window, 420)) == 415  # at most 105 of each, and one window has 100


# -- counts --------------------------------------------------------------------------------------------------------


@given(tokens=st.integers(1, 3000), share=st.floats(0.001, 1), depth=st.integers(2, 40))
def test_a_budget_is_met_to_the_rounding_of_counts(tokens, share, depth):
    mean = max(1.0, share * tokens)
    plan = VScan(tokens=mean).plan(depth, (tokens,))
    spent = sum(plan) / depth
    assert spent == pytest.approx(mean, abs=0.75)
    assert min(plan) >= 1
    assert max(plan) <= tokens
