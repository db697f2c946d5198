import pytest
import torch

from foveate.contract import LayerView
from foveate.methods.fastv import FastV
from tests.methods import stage_of, stays

EXAMPLES = [FastV(layers=(2,), keep=(0.4,)), FastV(layers=(2, 4), keep=(0.6, 0.5), scope="image")]
KEEP_ALL = FastV(keep=(1.0,))
SMALLEST = FastV(layers=(2,), keep=(0.0,))


def kept(attention, **settings):
    return stays(stage_of(FastV(**settings)), LayerView(attention=torch.as_tensor(attention)))


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(576, 0.5, 288), (576, 1 - 0.7, 173), (5, 0.5, 2), (7, 0.5, 4), (1, 0.4, 1), (3, 0.0, 1), (4, 1.0, 4)],
)
def test_counts_are_rounded_halves_to_even_and_one_token_stays(tokens, keep, count):
    assert len(kept([1.0] * tokens, keep=(keep,))) == count
