import torch

from foveate.contract import ImageView
from foveate.core.merge import bipartite, by_first_token
from foveate.methods.tome import ToMe
from tests.methods import at, stage_of

EXAMPLES = [ToMe(retention=0.6), ToMe(retention=0.2, positions="keep")]
KEEP_ALL = ToMe(retention=1.0)
SMALLEST = ToMe(tokens=1)


def cut_of(method, keys, features=None):
    return stage_of(method).cut(ImageView(keys if features is None else features, keys=keys))


# -- an example ----------------------------------------------------------------------------------------------------


def test_several_of_one_side_may_join_the_same():
    keys = at(0, 1, 2, 180, 3, 170)
    cut = cut_of(ToMe(tokens=3), keys, torch.tensor([[1.0], [2], [3], [4], [5], [6]]))
    assert cut.parent.tolist() == [0, 0, 0, 1, 0, 2]
    assert cut.rows[:, 0].tolist() == [2.75, 4, 6]


def test_where_more_than_half_must_go_the_merged_are_split_again():
    """Eight to two: first 0 1, 2 3, 4 5 and 6 7, of means 0.5, 10.5, 90.5 and 100.5 degrees; then the first two."""
    keys = at(0, 1, 10, 11, 90, 91, 100, 101)
    cut = cut_of(ToMe(tokens=2), keys, torch.arange(8.0)[:, None])
    assert cut.parent.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert cut.rows[:, 0].tolist() == [1.5, 5.5]
    assert cut.source.tolist() == [0, 4]


# -- counts and edges ----------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_index():
    cut = bipartite(torch.ones(7, 2), 5)  # rows 4 6 1 3 5
    assert cut.parent.tolist() == [2, 2, 2, 3, 0, 4, 1]  # 0 and 2 into 1
    zeros = bipartite(torch.zeros(4, 2), 3)  # keys of length 0 have no direction: the first edge
    assert zeros.parent.tolist() == [1, 1, 0, 2]
    ordered = by_first_token(cut)
    assert (ordered.source.tolist(), ordered.parent.tolist()) == ([0, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 4])
