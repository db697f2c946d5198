"""Run the contract tests of foveate's methods, and a case worked out by hand."""

import torch
from foveate_longest import Longest

from foveate.contract import LayerView, Shape
from foveate.naming import parse
from foveate.testing import MethodContract


class TestLongest(MethodContract):
    examples = (Longest(keep=0.3), Longest(tokens=7))


def test_the_longest_stay():
    (stage,) = Longest(keep=0.5).stages(Shape(depth=6))
    cut = stage.cut(LayerView(hidden=torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 6.0], [2.0, 2.0]])))
    assert cut.source.tolist() == [0, 2]


def test_its_name_is_known():
    assert str(parse("longest:keep=0.3+finalkv")).startswith("longest:keep=0.3+finalkv")
