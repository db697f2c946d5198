"""What V2Drop, Random and Uniform share: schedules, scopes and budgets."""

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, LayerView, Shape


class Config:
    """As much of a model's config as a budget asks for."""

    def __init__(self, depth):
        self.num_hidden_layers = depth


def mean(method, depth, tokens):
    plan = method.plan(depth, (tokens,))
    return sum(plan) / len(plan)


def test_the_solved_schedule_of_the_spec():
    method = fv.V2Drop.for_budget(Config(28), retention=0.25, layers=(3, 17, 22))
    assert method.solution(28, Arriving.all_of(6272)) == (pytest.approx(0.258, abs=5e-4), 0.3, 0.0)


def test_the_floor_is_named_and_an_earlier_first_cut_is_the_users_choice():
    with pytest.raises(fv.BudgetError, match=r"9\.53%"):
        fv.V2Drop.for_budget(Config(32), tokens=48, vision_tokens=576)
    method = fv.V2Drop.for_budget(Config(32), tokens=48, layers=(1, 17, 22))
    assert mean(method, 32, 576) == pytest.approx(48, abs=1)


def cut_of(method, tokens, **known):
    """What the method's only stage makes of these tokens."""
    (stage,) = method.stages(Shape(depth=32))
    return stage.cut(LayerView(tokens=tokens, **known))


def test_ranking_each_image_keeps_its_share_of_each():
    images = torch.arange(30).split((10, 20))
    method = fv.Random(layers=(3,), keep=(0.5,), scope="image")
    assert [stage.unit for stage in method.stages(Shape(depth=32))] == ["image"]
    assert [cut_of(method, image).count for image in images] == [5, 10]
    assert method.plan(4, (10, 20)) == (30, 30, 30, 15)
    together = fv.Random(layers=(3,), keep=(0.5,))
    assert [stage.unit for stage in together.stages(Shape(depth=32))] == ["sample"]
    assert cut_of(together, torch.arange(30)).count == 15


@pytest.mark.parametrize("tokens", [64, 128])
def test_the_token_that_a_last_cut_leaves_is_in_the_equation(tokens):
    """Cuts 1, 17, 22 once spent 64.22 for 64 tokens and 128.19 for 128."""
    for kind in (fv.V2Drop, fv.Random, fv.Uniform):
        method = kind.for_budget(Config(32), tokens=tokens, layers=(1, 17, 22))
        assert method.layers == (1, 17, 22)
        assert tokens - 1 <= mean(method, 32, 576) <= tokens + 0.1


@pytest.mark.parametrize("kind", [fv.Random, fv.Uniform])
@given(tokens=st.integers(1, 4000), share=st.floats(0.0, 1.0))
def test_one_cut_before_the_decoder_spends_any_budget_to_the_token(kind, tokens, share):
    budget = max(1, int(tokens * share))
    method = kind.for_budget(Config(32), tokens=budget, vision_tokens=tokens, layers=(0,))
    assert method.plan(32, (tokens,)) == (budget,) * 32


def test_one_cut_deeper_down_has_a_floor():
    method = fv.V2Drop.for_budget(Config(32), tokens=192, layers=(8,))
    assert method.plan(32, (576,)) == (576,) * 8 + (64,) * 24
    # 144.75, however it is rounded
    with pytest.raises(fv.BudgetError, match=r"floor is 25.13%, 144.[78] tokens"):
        fv.V2Drop.for_budget(Config(32), tokens=144, vision_tokens=576, layers=(8,))
    with pytest.raises(fv.BudgetError, match=r"0\.17%"):
        fv.Uniform.for_budget(Config(32), tokens=0.5, vision_tokens=576, layers=(0,))
