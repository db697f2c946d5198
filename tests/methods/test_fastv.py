import pytest
import torch

from foveate.contract import LayerView, Shape
from foveate.methods.fastv import FastV

EXAMPLES = [FastV(layers=(2,), keep=(0.4,)), FastV(layers=(2, 4), keep=(0.6, 0.5), scope="image")]
KEEP_ALL = FastV(keep=(1.0,))
SMALLEST = FastV(layers=(2,), keep=(0.0,))


def kept(attention, **settings):
    (stage,) = FastV(**settings).stages(Shape(depth=32))
    cut = stage.cut(LayerView(attention=torch.as_tensor(attention)))
    return list(range(len(attention))) if cut is None else cut.source.tolist()


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(576, 0.5, 288), (576, 1 - 0.7, 173), (5, 0.5, 2), (7, 0.5, 4), (1, 0.4, 1), (3, 0.0, 1), (4, 1.0, 4)],
)
def test_counts_are_rounded_halves_to_even_and_one_token_stays(tokens, keep, count):
    assert len(kept([1.0] * tokens, keep=(keep,))) == count
