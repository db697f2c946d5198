import math

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import ImageView
from foveate.methods.prumerge_plus import PruMergePlus, _balance, _step
from tests.methods.test_prumerge import cut_of, random_view

EXAMPLES = [PruMergePlus(), PruMergePlus(retention=0.4, neighbours=3)]
KEEP_ALL = PruMergePlus(retention=1.0)
SMALLEST = PruMergePlus(tokens=1)


def test_the_last_patch_is_never_at_a_step():
    """The released range ends at N − 1: of 4 patches with step 1 these are 0, 1 and 2."""
    view = ImageView(torch.ones(4, 1), attention=torch.tensor([1.0, 2, 3, 0]), keys=torch.eye(4))
    assert cut_of(PruMergePlus(), view) is None  # three kept and the row of the others: as many as arrive


@pytest.mark.parametrize(
    ("tokens", "outliers", "step"),
    [(576, 34, 5), (576, 1, 192), (576, 144, 1), (576, 193, 1), (576, 576, 1), (25, 2, 4), (1, 1, 1)],
)
def test_steps_by_hand(tokens, outliers, step):
    """576 / 34 is 16.9: a third of 16 is 5. A step is 1 at least, also of so many as quartiles never make outliers."""
    assert _step(tokens, outliers) == step


@pytest.mark.parametrize("budget", [192, 128, 64])
def test_a_budget_keeps_about_three_at_steps_for_each_by_score(budget):
    """Some 52, 33 and 16 by score would do without whole steps, which make 48, 32 and 16 and 11, 4 and 0 to fill up."""
    top, step = _balance(576, budget - 1)
    even = math.ceil(575 / step)
    assert top + even * (1 - top / 576) == pytest.approx(budget - 1, rel=0.07)
    assert top == {192: 48, 128: 32, 64: 16}[budget]
    view = random_view(576)
    cut = cut_of(fv.preset(f"prumerge_plus/llava-1.5-7b/{budget}"), view)
    assert cut.count == budget
    highest = set(view.attention.sort(descending=True).indices[:top].tolist())
    rows = set(cut.source[:-1].tolist())
    assert highest <= rows
    others = [token for token in range(0, 575, step) if token not in highest]
    missing = [token for token in others if token not in rows]
    assert missing == others[len(others) - len(missing) :]  # only the end of the steps is left out


@given(tokens=st.integers(2, 400), data=st.data(), seed=st.integers(0, 99))
def test_an_exact_count_has_the_most_attended_of_all_others_last(tokens, data, seed):
    count = data.draw(st.integers(1, tokens - 1))
    view = random_view(tokens, seed)
    cut = cut_of(PruMergePlus(tokens=count, neighbours=1), view)
    rows = cut.source.tolist()
    dropped = sorted(set(range(tokens)) - set(rows[:-1]), key=lambda token: (-view.attention[token].item(), token))
    assert rows[-1] == dropped[0]
    assert cut.parent[dropped].tolist() == [count - 1] * len(dropped)
