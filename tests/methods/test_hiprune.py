import torch

from foveate.contract import Arriving, ImageView, TowerAttention
from foveate.core.grid import neighbours_of
from foveate.methods.hiprune import HiPrune
from tests.methods import stage_of, stays

EXAMPLES = [HiPrune(retention=0.4, alpha=0.5), HiPrune(tokens=7, alpha=1.0), HiPrune(retention=0.3, positions="keep")]
KEEP_ALL = HiPrune(retention=1.0)
SMALLEST = HiPrune(tokens=1)
DEEP = TowerAttention(by="patches")
MIDDLE = TowerAttention(by="patches", block=8, of=24)


def view_of(middle, deep, grids, entered=None):
    tokens = len(middle)
    arriving = Arriving(tokens, entered or tokens, tokens, grids=grids)
    return ImageView(
        torch.zeros(tokens, 2),
        grids=grids,
        arriving=arriving,
        signals={MIDDLE: middle, DEEP: deep},
    )


def random_view(tokens, seed, grids=()):
    middle, deep = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed))
    return view_of(middle, deep, grids)


def kept(method, view):
    return stays(stage_of(method), view)


# -- an example ----------------------------------------------------------------------------------------------------


def test_buffers_that_do_not_fit_are_those_of_the_lowest_attention():
    """Three of nine with α = 1 have one anchor, 4, and room for two of its four buffers: 7 and 3."""
    middle = torch.tensor([0.0, 0.1, 0, 0.3, 0.9, 0.2, 0, 0.4, 0])
    view = view_of(middle, torch.arange(9.0), ((3, 3),))
    assert kept(HiPrune(tokens=3, alpha=1.0), view) == [3, 4, 7]


def test_without_anchors_the_deep_layer_decides():
    view = random_view(25, 0, ((5, 5),))
    highest = sorted(view[TowerAttention(by="patches")].sort(descending=True).indices[:7].tolist())
    assert kept(HiPrune(tokens=7, alpha=0.1), view) == highest  # 7 · 0.1 / 5 rounds to none
    assert kept(HiPrune(tokens=7, alpha=0.0), view) == highest


# -- counts, crops and grids ---------------------------------------------------------------------------------------


def test_neighbours_stay_in_their_grid_and_their_row():
    table = neighbours_of(((2, 2), (1, 3)), 7)
    assert table.tolist() == [
        [7, 2, 7, 1],
        [7, 3, 0, 7],
        [0, 7, 7, 3],
        [1, 7, 2, 7],
        [7, 7, 7, 5],
        [7, 7, 4, 6],
        [7, 7, 5, 7],
    ]
    assert neighbours_of((), 3).tolist() == [[3] * 4] * 3  # not known: none has any


def test_where_the_grid_is_not_known_anchors_have_no_buffers():
    middle, deep = torch.zeros(10), torch.zeros(10)
    middle[4], deep[[0, 9]] = 1.0, 1.0
    assert kept(HiPrune(tokens=3, alpha=1.0), view_of(middle, deep, ())) == [0, 4, 9]
