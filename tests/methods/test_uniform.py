import torch

from foveate.methods.base import View
from foveate.methods.uniform import Uniform

EXAMPLES = [
    Uniform(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3)),
    Uniform(layers=(0, 2), keep=(0.5, 0.5), scope="frame", skip_below=10),
]
KEEP_ALL = Uniform(layers=(0, 3), keep=(1.0, 1.0))
SMALLEST = Uniform(layers=(0, 2), keep=(0.3, 0.0))


def test_spreads_evenly_over_the_survivors():
    assert Uniform().select(View.of(torch.zeros(12, 1)), 4).tolist() == [1, 4, 7, 10]
    assert Uniform().select(View.of(torch.zeros(5, 1)), 1).tolist() == [2]
    assert Uniform().select(View.of(torch.zeros(5, 1)), 5).tolist() == [0, 1, 2, 3, 4]
