"""The largest setting that a budget pays for."""

import pytest
from hypothesis import given, strategies as st
from transformers import AutoConfig

import foveate as fv
from foveate import embedded
from foveate.cost.fitting import largest, within_flops

EMBEDDED = AutoConfig.from_pretrained(embedded.path())
SHARES = st.floats(0.01, 0.99)


@given(st.integers(1, 600), SHARES, st.floats(0, 0.3))
def test_no_more_is_spent_than_may_be_and_a_step_more_would(steps, limit, floor):
    """A price in steps, as whole tokens make them; below the floor there is no setting."""

    def build(number):
        if number < floor:
            raise fv.BudgetError("below the floor")
        return number

    def price(number):
        return int(number * steps) / steps

    best = largest(build, price, limit, near=0, tries=40)
    if best is None:
        assert price(floor) > limit - 1 / steps
    else:
        assert price(best) <= limit * (1 + 1e-9)
        assert price(min(1, best + 1.001 / steps)) > limit or best > 1 - 1e-9


def test_what_is_near_enough_is_not_tried_on():
    tried = []

    def build(number):
        tried.append(number)
        return number

    assert largest(build, float, 0.5, near=0.01) == 0.5
    assert tried == [0.5]
    assert largest(float, float, 0.0) is None


@given(st.floats(0.4, 0.95))
def test_prompts_take_no_more_flops_than_they_may_on_average(share):
    costs = {counted(text): count for text, count in ((9, 1), (70, 3))}
    method = within_flops(fv.V2Drop(layers=(1, 17, 22)), share, costs)
    spent = [cost(method).total_flops / cost(None).total_flops for cost in costs]
    mean = (spent[0] + 3 * spent[1]) / 4
    assert share - 0.01 < mean <= share * (1 + 1e-9)
    assert method.layers == (1, 17, 22)


@pytest.mark.parametrize("share", [0, 1, 2, -0.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(fv.SettingError, match="flops"):
        within_flops(fv.V2Drop(), share, {counted(9): 1})


def counted(text):
    """What a prompt of so many tokens of text and 576 of a picture costs."""
    return lambda method: fv.cost(EMBEDDED, text_tokens=text, vision_tokens=576, method=method)
