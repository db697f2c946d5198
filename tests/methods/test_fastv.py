import math

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


@pytest.mark.parametrize(
    ("tokens", "keep", "count"),
    [(576, 0.5, 288), (576, 1 - 0.7, 173), (5, 0.5, 2), (7, 0.5, 4), (1, 0.4, 1), (3, 0.0, 1), (4, 1.0, 4)],
)
def test_counts_are_rounded_halves_to_even_and_one_token_stays(tokens, keep, count):
    assert len(kept([1.0] * tokens, keep=(keep,))) == count


def test_ties_go_to_the_lower_index():
    assert kept([0.2, 0.1, 0.2, 0.2], keep=(0.5,)) == [0, 2]
    assert kept([0.0] * 6, keep=(0.5,)) == [0, 1, 2]  # nobody looks at the image
