import pytest
import torch

import foveate as fv
from foveate.methods.adaptive import Adaptive, above, bounds
from foveate.methods.stages import Arriving, LayerView, Shape


def test_tokens_above_the_threshold_stay_within_the_bounds():
    scores = torch.tensor([0.1, 0.9, 0.5, 0.7, 0.3])
    assert above(scores, 0.5, 1, 5).tolist() == [False, True, True, True, False]
    assert above(scores, 0.5, 1, 2).tolist() == [False, True, False, True, False]
    assert above(scores, 2.0, 2, 5).tolist() == [False, True, False, True, False]


def test_ties_at_the_bound_go_to_the_lower_index():
    assert above(torch.ones(4), 0.5, 1, 2).tolist() == [True, True, False, False]


def test_the_bounds_lie_around_the_schedules_count():
    assert bounds(10, 100, 0.3) == (7, 13)
    assert bounds(1, 100, 0.3) == (1, 2)
    assert bounds(10, 11, 0.3) == (7, 11)
    assert bounds(10, 6, 0.3) == (6, 6)
    assert bounds(10, 100, 0.0) == (10, 10)


@pytest.mark.parametrize(("threshold", "left"), [(0.0, 7), (99.0, 3)])
@pytest.mark.parametrize("came", [7, 10, 13])
def test_a_later_cut_is_bounded_by_the_schedule_and_not_by_what_an_earlier_one_left(came, threshold, left):
    inner = fv.V2Drop(layers=(1, 2), keep=(0.5, 0.5))  # of 20 tokens 10, then 5
    _, stage = Adaptive(inner=inner, thresholds=(0.0, threshold), spread=0.3).stages(Shape(4))
    arriving = Arriving(tokens=came, entered=20, started=20)
    cut = stage.cut(LayerView(hidden=torch.randn(came, 8), hidden_before=torch.randn(came, 8), arriving=arriving))
    assert (came if cut is None else int(cut.stays.sum())) == left


def test_a_cut_that_drops_nothing_in_the_schedule_drops_nothing():
    inner = fv.V2Drop(layers=(1, 2), keep=(0.5, 1.0))
    _, stage = Adaptive(inner=inner, thresholds=(0.0, 99.0), spread=0.3).stages(Shape(4))
    arriving = Arriving(tokens=13, entered=20, started=20)
    assert stage.cut(LayerView(hidden=torch.ones(13, 8), hidden_before=torch.zeros(13, 8), arriving=arriving)) is None


def test_no_spread_is_the_schedule_itself():
    inner = fv.V2Drop(layers=(1,), keep=(0.5,))
    (stage,) = Adaptive(inner=inner, thresholds=(0.0,), spread=0.0).stages(Shape(4))
    (own,) = inner.stages(Shape(4))
    hidden, before = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(3))
    view = LayerView(hidden=hidden, hidden_before=before, arriving=Arriving.all_of(9))
    assert stage.cut(view).source.tolist()[:4] == own.cut(view).source.tolist()


@pytest.mark.parametrize(
    ("inner", "thresholds", "says"),
    [
        (fv.VisionDrop(), (0.0,), "has no score"),
        (fv.Uniform(), (0.0,), "has no score"),
        (fv.V2Drop(), (0.0,), "3 cuts; got 1 thresholds"),
    ],
)
def test_methods_without_scores_and_other_numbers_of_thresholds_are_refused(inner, thresholds, says):
    with pytest.raises(fv.SettingError, match=says):
        Adaptive(inner=inner, thresholds=thresholds).stages(Shape(32))


def test_the_setting_survives_its_json():
    method = Adaptive(inner=fv.V2Drop(), thresholds=(0.1, 0.2, 0.3), spread=0.2)
    assert Adaptive.from_json(method.to_json()) == method
