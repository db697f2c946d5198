import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Attention, LayerView, Shape
from foveate.methods.fastv import FastV
from tests.contract.test_scheduled import Config, mean

EXAMPLES = [FastV(layers=(2,), keep=(0.4,)), FastV(layers=(2, 4), keep=(0.6, 0.5), scope="image")]
KEEP_ALL = FastV(keep=(1.0,))
SMALLEST = FastV(layers=(2,), keep=(0.0,))


def kept(attention, **settings):
    (stage,) = FastV(**settings).stages(Shape(depth=32))
    cut = stage.cut(LayerView(attention=torch.as_tensor(attention)))
    return list(range(len(attention))) if cut is None else cut.source.tolist()


def test_two_heads_and_five_tokens_by_hand():
    """K = 2 and R = 60 %: of layer 1 the last token's row, mean over heads; two of five stay, in their order."""
    queries = [[1.0, 0.0], [0.0, 2.0]]  # of the last token, one a head
    keys = [
        [[0.0, 0.0], [2.0, 0.0], [1.0, 5.0], [0.0, 0.0], [1.0, 1.0], [3.0, 0.0]],  # the last is a token of text
        [[0.0, 1.0], [0.0, 0.0], [0.0, 0.5], [4.0, 2.0], [0.0, 0.0], [0.0, 0.0]],
    ]
    paid = [0.0] * 5
    for query, head in zip(queries, keys, strict=True):
        weights = [math.exp(sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(2)) for key in head]
        for token in range(5):
            paid[token] += weights[token] / sum(weights) / 2
    assert sorted(range(5), key=lambda token: -paid[token])[:2] == [3, 1]
    assert kept(paid, keep=(0.4,)) == [1, 3]


def test_it_reads_the_last_tokens_row_of_the_layer_before():
    (stage,) = FastV().stages(Shape(depth=32))
    assert (stage.layer, stage.positions, stage.unit) == (2, "keep", "sample")
    assert stage.reads == (Attention(rows="last", layer="ran", heads="mean", over="mean"),)


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(576, 0.5, 288), (576, 1 - 0.7, 173), (5, 0.5, 2), (7, 0.5, 4), (1, 0.4, 1), (3, 0.0, 1), (4, 1.0, 4)],
)
def test_counts_are_rounded_halves_to_even_and_one_token_stays(tokens, keep, count):
    assert len(kept([1.0] * tokens, keep=(keep,))) == count


def test_ties_go_to_the_lower_index():
    assert kept([0.2, 0.1, 0.2, 0.2], keep=(0.5,)) == [0, 2]
    assert kept([0.0] * 6, keep=(0.5,)) == [0, 1, 2]  # nobody looks at the image


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 40))
def test_no_token_that_leaves_has_more_attention_than_one_that_stays(paid, count):
    count = min(count, len(paid))
    stay = set(kept([float(value) for value in paid], keep=(count / len(paid),)))
    assert len(stay) == count
    leave = [paid[token] for token in range(len(paid)) if token not in stay]
    assert not leave or max(leave) <= min(paid[token] for token in stay)


def test_k_0_is_refused():
    with pytest.raises(fv.SettingError, match="start at 1 for this method; got 0"):
        FastV(layers=(0,))


@pytest.mark.parametrize(("budget", "count"), [(192, 166), (128, 98), (64, 30)])
def test_presets_spend_their_mean(budget, count):
    preset = fv.presets()[f"fastv/llava-1.5-7b/{budget}"]
    plan = preset.method.plan(32, (576,))
    assert plan == (576,) * 2 + (count,) * 30
    assert sum(plan) / 32 == pytest.approx(budget, abs=0.5)
    solved = FastV.for_budget(Config(32), tokens=budget)
    assert solved.plan(32, (576,)) == plan


@given(depth=st.integers(3, 80), share=st.floats(0.01, 1.0), tokens=st.integers(16, 4000))
def test_a_budget_is_met_or_refused_with_its_floor(depth, share, tokens):
    floor = (2 + (depth - 2) / tokens) / depth
    if share < floor:
        with pytest.raises(fv.BudgetError, match="floor is"):
            FastV.for_budget(Config(depth), retention=share, vision_tokens=tokens)
    else:
        method = FastV.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert mean(method, depth, tokens) == pytest.approx(share * tokens, abs=0.51)
