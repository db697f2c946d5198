import math

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, LayerView
from foveate.errors import SettingError
from foveate.methods.hawk import HAWK
from tests.methods import stage_of, stays
from tests.models import batch, tiny

EXAMPLES = [HAWK(keep=0.4), HAWK(keep=0.3, leave_out=(0, 1), rounding="up", scope="sample", positions="reindex")]
SMALLEST = HAWK(keep=0.001)


def kept(products, count, **settings):
    stage = stage_of(HAWK(tokens=count, **settings))
    return stays(stage, LayerView(signals={stage.reads[0]: products}))


PRODUCTS = torch.tensor([[3.0, 0.0], [0.0, -0.2], [4.0, 0.0], [0.0, 0.2], [0.0, 0.1]])


def test_what_is_no_number_counts_nothing_and_where_nobody_asks_tokens_stay_at_even_steps():
    broken = PRODUCTS.clone()
    broken[2, 0], broken[3, 1] = float("nan"), float("inf")
    assert kept(broken, 2) == [0, 4]
    assert kept(torch.zeros(9, 2), 3) == [1, 4, 7]


@given(seed=st.integers(0, 2**16), tokens=st.integers(2, 40), heads=st.integers(1, 6), data=st.data())
def test_the_definition_in_double_precision(seed, tokens, heads, data):
    rng = torch.Generator().manual_seed(seed)
    products = torch.randn(tokens, heads, generator=rng)
    weights = torch.rand(heads, generator=rng).tolist()
    count = data.draw(st.integers(1, tokens))
    columns = products.double().T.tolist()
    scores = [
        sum(w * column[v] / math.hypot(*column) for w, column in zip(weights, columns, strict=True))
        for v in range(tokens)
    ]
    wanted = sorted(sorted(range(tokens), key=lambda token: -scores[token])[:count])
    assert kept(products, count, weights=tuple(weights)) == wanted


def test_counts_are_rounded_or_up_as_the_code_has_them():
    down, up = (HAWK(keep=0.198, rounding=rounding) for rounding in ("nearest", "up"))
    assert [down.rows(Arriving.all_of(count)) for count in (2, 120, 576)] == [1, 24, 114]
    assert [up.rows(Arriving.all_of(count)) for count in (2, 120, 576)] == [1, 24, 115]
    assert HAWK(keep=0.2, rounding="up", scope="sample").plan(28, (24, 24)) == (10,) * 28
    assert HAWK(keep=0.2).plan(28, (24, 24)) == (10,) * 28
    assert HAWK(keep=0.1, rounding="up").plan(28, (24, 24)) == (6,) * 28


def test_weights_must_be_as_many_as_heads():
    with (
        pytest.raises(SettingError, match="weights"),
        fv.drop(tiny("llava"), HAWK(keep=0.4, weights=(1.0, 1.0, 1.0))),
        torch.no_grad(),
    ):
        tiny("llava")(**batch("llava", ["tit"]))
