import math

import pytest
import torch

from foveate.contract import Attention, LayerView, Shape
from foveate.methods.priortr import PriorTR, gained

EXAMPLES = [PriorTR(layer=3, keep=0.4), PriorTR(layer=2, retention=0.6, question="last", heads="max", kv=False)]
EXAMPLES.append(PriorTR(layer=1, keep=0.5, question="but_last", heads="max"))
SMALLEST = PriorTR(layer=2, target=1)
NULL, AFTER = Attention(rows="null"), Attention(rows="after")


def kept(question, null, target, **view):
    stage, _ = PriorTR(target=target).stages(Shape(depth=32))
    signals = {NULL: torch.tensor(null), AFTER: torch.tensor(question)}
    cut = stage.cut(LayerView(count=len(null), signals=signals, **view))
    return list(range(len(null))) if cut is None else cut.source.tolist()


def test_six_tokens_by_hand():
    """Rows of attention over six image tokens; a row's other attention goes to text, so rows sum to less than 1."""
    null = [0.20, 0.02, 0.00, 0.06, 0.10, 0.02]  # of all it pays, 0.4, shares .5 .05 0 .15 .25 .05
    words = [[0.10, 0.10, 0.0, 0.05, 0.05, 0.10], [0.02, 0.10, 0.0, 0.10, 0.01, 0.20]]
    question = [sum(row) / 3 for row in zip(null, *words, strict=True)]  # the null token is one of its rows
    p = [value / sum(question) for value in question]
    q = [value / sum(null) for value in null]
    gain = [a * math.log((a + 1e-10) / (b + 1e-10)) for a, b in zip(p, q, strict=True)]
    torch.testing.assert_close(gained(torch.tensor(question), torch.tensor(null)), torch.tensor(gain))
    # Tokens 5 and 1 gain, 3 a little; nobody looks at 2; 4 and 0 lose.
    assert sorted(range(6), key=lambda token: -gain[token]) == [5, 1, 3, 2, 4, 0]
    assert [kept(question, null, count) for count in (1, 2, 3, 4)] == [[5], [1, 5], [1, 3, 5], [1, 2, 3, 5]]


def test_what_lost_attention_goes_before_what_nobody_looks_at():
    assert kept([0.5, 0.0, 0.5], [0.1, 0.0, 0.9], 2) == [0, 1]


def test_where_the_question_precedes_the_image_nothing_is_gained_and_the_first_stay():
    row = [0.1, 0.3, 0.2, 0.2]
    assert gained(torch.tensor(row), torch.tensor(row)).tolist() == [0.0] * 4
    assert kept(row, row, 2) == [0, 1]


def test_without_text_behind_tokens_at_even_steps_stay():
    assert kept([0.0] * 9, [0.0] * 9, 3, text_behind=False) == [1, 4, 7]


def test_attention_that_vanishes_gains_nothing():
    assert gained(torch.zeros(3), torch.zeros(3)).tolist() == [0.0] * 3
    assert gained(torch.tensor([0.2, 0.0]), torch.zeros(2)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "tokens", "count"),
    [({"target": 192}, 576, 192), ({"target": 192}, 100, 100), ({"keep": 0.1111}, 1000, 111), ({"keep": 0.0}, 7, 1)],
)
def test_counts(settings, tokens, count):
    assert PriorTR(**settings).plan(5, (tokens,)) == (tokens,) * 3 + (count,) * 2
