import pytest
import torch

from foveate.contract import Attention, LayerView, Shape
from foveate.methods.priortr import PriorTR, gain
from tests.methods import stays

EXAMPLES = [PriorTR(layer=3, keep=0.4), PriorTR(layer=2, retention=0.6, question="last", heads="max", kv=False)]
EXAMPLES.append(PriorTR(layer=1, keep=0.5, question="but_last", heads="max"))
SMALLEST = PriorTR(layer=2, target=1)
NULL, AFTER = Attention(rows="null"), Attention(rows="after")


def kept(question, null, target, **view):
    stage, _ = PriorTR(target=target).stages(Shape(depth=32))
    signals = {NULL: torch.tensor(null), AFTER: torch.tensor(question)}
    return stays(stage, LayerView(count=len(null), signals=signals, **view))


def test_what_lost_attention_goes_before_what_nobody_looks_at():
    assert kept([0.5, 0.0, 0.5], [0.1, 0.0, 0.9], 2) == [0, 1]


def test_where_the_question_precedes_the_image_nothing_is_gained_and_the_first_stay():
    row = [0.1, 0.3, 0.2, 0.2]
    assert gain(torch.tensor(row), torch.tensor(row)).tolist() == [0.0] * 4
    assert kept(row, row, 2) == [0, 1]


def test_without_text_behind_tokens_at_even_steps_stay():
    assert kept([0.0] * 9, [0.0] * 9, 3, text_behind=False) == [1, 4, 7]


def test_attention_that_vanishes_gains_nothing():
    assert gain(torch.zeros(3), torch.zeros(3)).tolist() == [0.0] * 3
    assert gain(torch.tensor([0.2, 0.0]), torch.zeros(2)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "tokens", "count"),
    [({"target": 192}, 576, 192), ({"target": 192}, 100, 100), ({"keep": 0.1111}, 1000, 111), ({"keep": 0.0}, 7, 1)],
)
def test_counts(settings, tokens, count):
    assert PriorTR(**settings).plan(5, (tokens,)) == (tokens,) * 3 + (count,) * 2
