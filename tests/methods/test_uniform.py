import torch

from foveate.contract import LayerView, Shape
from foveate.methods.uniform import Uniform

EXAMPLES = [Uniform(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3)), Uniform(layers=(0, 2), keep=(0.5, 0.5), scope="frame")]
KEEP_ALL = Uniform(layers=(0, 3), keep=(1.0, 1.0))
SMALLEST = Uniform(layers=(0, 2), keep=(0.3, 0.0))


def kept(tokens, keep):
    (stage,) = Uniform(layers=(0,), keep=(keep,)).stages(Shape(depth=1))
    cut = stage.cut(LayerView(tokens=torch.arange(tokens)))
    return None if cut is None else cut.source.tolist()


def test_spreads_evenly_over_the_survivors():
    assert kept(12, 4 / 12) == [1, 4, 7, 10]
    assert kept(5, 0.2) == [2]
    assert kept(5, 1.0) is None  # all stay
    assert Uniform().pick(LayerView(count=5), 5).tolist() == [0, 1, 2, 3, 4]
