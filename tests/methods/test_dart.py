import pytest
import torch

from foveate.contract import LayerView, Shape
from foveate.methods.dart import DART, visiting_order
from tests.methods import at, stays

EXAMPLES = [DART(layer=2, keep=0.6, pivots=2, text_pivots=2), DART(layer=3, retention=0.7, text_pivots=0)]
SMALLEST = DART(layer=1, target=0, pivots=1)


def kept(method, norms, features, text=None, columns=None, **view):
    """Without columns all stand in the same one: vision is visited by falling norm, then text."""
    (stage,) = method.stages(Shape(depth=32))
    columns = torch.tensor(columns or [0] * (len(norms) + method.text_pivots))
    told = {"key_norms": torch.tensor(norms), "normed": torch.as_tensor(features), "columns": columns, **view}
    if text is not None:
        told["pivots"] = torch.as_tensor(text)
    return stays(stage, LayerView(count=len(norms), **told))


def test_pivots_are_visited_by_their_column_mod_32():
    """The pivots look at 0° (token 3) and 3° (text). Both find token 0 (181°) least alike, and the first takes it; then
    token 3 takes token 1 (175°), or the text token 2 (186°)."""
    norms, angles = [1.0, 1.0, 1.0, 9.0], (181, 175, 186, 0)
    method = DART(target=2, pivots=1, text_pivots=1)
    # Token 3 is in column 67, which is 3 mod 32; the text's remainders are 4, 0 and 3.
    for text, wanted in ((68, [0, 2, 3]), (96, [0, 1, 3]), (99, [0, 2, 3])):
        assert kept(method, norms, at(*angles), at(3), [64, 65, 66, 67, text]) == wanted
    assert visiting_order(torch.tensor([432, 392, 384, 385, 613, 624, 618, 620])).tolist() == [2, 3, 4, 1, 6, 7, 0, 5]


def test_equal_columns_are_visited_by_falling_norm_and_pivots_never_leave():
    # Pivots 2 and 0. Both find token 3 least alike: pivot 2 comes first and takes it, pivot 0 takes the next.
    norms, angles = [5.0, 1.0, 7.0, 1.0, 1.0], (0, 90, 20, 190, 170)
    assert kept(DART(target=2, pivots=2, text_pivots=0), norms, at(*angles)) == [0, 2, 3, 4]
    # Alike as they are, pivots are no candidates: no token is taken twice.
    assert kept(DART(target=2, pivots=2, text_pivots=0), norms, at(*[0] * 5)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "tokens", "count"),
    [
        ({"keep": 1 - 0.667}, 576, 188),
        ({"keep": 1 - 0.778}, 576, 124),
        ({"keep": 1 - 0.889}, 576, 60),
        ({"target": 7}, 100, 4),  # less than a token for each pivot
        ({"target": 320}, 300, 300),
        ({"target": 320}, 322, 316),  # B is 322 − 4 at most
        ({"target": 320}, 327, 324),
        ({"target": 128}, 3, 3),
        ({"keep": 0.0}, 1, 1),
    ],
)
def test_true_counts_are_those_of_the_spec(settings, tokens, count):
    assert DART(**settings).plan(4, (tokens,)) == (tokens,) * 2 + (count,) * 2


def test_without_text_behind_the_vision_pivots_share_the_budget():
    norms, angles = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0], (0, 180, 170, 160, 10, 20)
    method = DART(target=4, pivots=1, text_pivots=1)
    assert kept(method, norms, at(*angles), at(90), text_behind=False) == [0, 1, 2, 3, 5]


def test_ties_and_zero_rows_go_to_the_lower_index():
    method = DART(target=2, pivots=2, text_pivots=0)
    assert kept(method, [1.0] * 5, at(*[40] * 5)) == [0, 1, 2, 3]
    assert kept(method, [0.0] * 5, [[0.0, 0.0]] * 5) == [0, 1, 2, 3]
