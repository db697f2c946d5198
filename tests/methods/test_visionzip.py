import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, ImageView, TowerAttention, TowerKeys
from foveate.methods.visionzip import VisionZip
from tests.methods import stage_of

EXAMPLES = [
    VisionZip(dominant=7, contextual=3, reference=25),
    VisionZip(dominant=4, contextual=2, reference=25, positions="keep", merge="average"),
    VisionZip(retention=0.4),
]
KEEP_ALL = VisionZip(retention=1.0)
SMALLEST = VisionZip(tokens=1)


def random_view(tokens, seed=0, cls=None, grids=(), entered=None, reserved=0):
    rng = torch.Generator().manual_seed(seed)
    features, keys = torch.randn(tokens, 8, generator=rng), torch.randn(tokens, 4, generator=rng)
    scores = torch.rand(tokens, generator=rng)
    arriving = Arriving(tokens, entered or tokens, tokens, reserved, grids)
    return ImageView(features, attention=scores, keys=keys, cls=cls, grids=grids, arriving=arriving)


# -- the example ---------------------------------------------------------------------------------------------------


def eight_patches():
    """The rest after the top two (1 and 6) are 0 2 3 4 5 7: two targets, step 3, are 0 and 4."""
    scores = torch.tensor([0.1, 0.9, 0.2, 0.1, 0.3, 0.1, 0.8, 0.0])
    features = torch.tensor([[1.0], [2], [3], [4], [5], [6], [7], [8]])
    # Keys of 2 and 7 point as that of 0 does; those of 3 and 5 as that of 4. 7's is short, which cosine does not see.
    keys = torch.tensor([[1.0, 0], [9, 9], [2, 0.1], [0.1, 3], [0, 1], [0, 5], [9, 9], [0.01, 0]])
    return ImageView(features, attention=scores, keys=keys, cls=torch.tensor([[-1.0]]))


def test_averaging_and_no_cls_where_position_ids_are_kept():
    method = VisionZip(dominant=2, contextual=2, reference=8, positions="keep", merge="average")
    stage = stage_of(method)
    assert stage.reads == (TowerAttention("cls"), TowerKeys())
    assert not stage.ownerless
    view = eight_patches()
    cut = stage.cut(ImageView(view.features, attention=view.attention, keys=view.keys))
    assert cut.source.tolist() == [1, 6, 0, 4]
    assert cut.rows[:, 0].tolist() == [2, 7, 4, 5]
    assert cut.parent.tolist() == [2, 0, 2, 3, 3, 3, 1, 2]


def test_a_target_that_nothing_joins_stays_itself():
    view = ImageView(
        torch.tensor([[1.0], [2], [3], [4]]), attention=torch.tensor([9.0, 1, 1, 1]),
        keys=torch.tensor([[1.0, 0], [0, 1], [1, 0], [1, 0.1]]),
    )  # fmt: skip
    cut = stage_of(VisionZip(dominant=1, contextual=2, reference=4), cls=False).cut(view)
    assert cut.source.tolist() == [0, 1, 2]
    assert cut.rows[:, 0].tolist() == [1, 2, 7]  # 3 + 4


# -- counts --------------------------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_patch():
    view = ImageView(torch.randn(6, 2), attention=torch.ones(6), keys=torch.zeros(6, 2))
    cut = stage_of(VisionZip(dominant=2, contextual=1, reference=6), cls=False).cut(view)
    assert cut.source.tolist() == [0, 1, 2]
    assert cut.parent.tolist() == [0, 1, 2, 2, 2, 2]  # keys of length 0 have no direction: the first target


@pytest.mark.parametrize(("tokens", "left"), [(1, 1), (2, 2), (64, 64), (65, 64), (576, 64)])
def test_small_images_stay_whole(tokens, left):
    view = random_view(tokens, cls=torch.zeros(1, 8), entered=576)
    cut = stage_of(VisionZip()).cut(view)
    assert (tokens if cut is None else cut.count) == left
    assert (cut is None) == (tokens == left)


@pytest.mark.parametrize(("budget", "pair"), [(192, (162, 30)), (128, (108, 20)), (64, (54, 10))])
def test_a_budget_splits_as_the_published_settings_do(budget, pair):
    assert VisionZip(tokens=budget)._counts(Arriving.all_of(576)) == pair
    preset = fv.preset(f"visionzip/llava-1.5-7b/{budget}")
    assert (preset.dominant, preset.contextual) == pair


def test_a_newline_that_is_added_later_counts():
    view = random_view(25, entered=26, reserved=1)
    assert stage_of(VisionZip(tokens=10), cls=False).cut(view).count == 9
    assert stage_of(VisionZip(dominant=7, contextual=3, reference=26), cls=False).cut(view).count == 9


# -- crops ---------------------------------------------------------------------------------------------------------
