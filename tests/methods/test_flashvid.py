import math

import pytest
import torch

from foveate.core.film_scenes import trees
from foveate.methods.flashvid import FlashVID

EXAMPLES = [FlashVID(keep=0.4), FlashVID(retention=0.5, form="events")]
STILL = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])


@pytest.mark.parametrize(("released", "times"), [(False, 1.0), (True, 1.5)])
def test_a_tree_is_its_mean_or_the_released_sum(released, times):
    """Three still frames: what no diverse token is hangs on the frame before. The release adds up all three and divides
    by two, one more than hang on the first directly."""
    features = STILL.expand(3, -1, -1)
    values, starts, root = trees(features, torch.zeros(3, 3, dtype=torch.bool), 1, 0.8, released)
    assert int(starts.sum()) == 3
    torch.testing.assert_close(values[0, 0], times * STILL[0])
    assert root.view(3, 3)[:, 0].tolist() == [0, 0, 0]


def test_diverse_tokens_hang_on_nothing():
    is_diverse = torch.zeros(2, 3, dtype=torch.bool)
    is_diverse[1, 0] = True  # so that its place stands alone, in both frames
    _, starts, root = trees(STILL.expand(2, -1, -1), is_diverse, 1, 0.8)
    assert starts.tolist() == [[True, True, True], [False, False, False]]
    assert root.tolist() == [0, 1, 2, 3, 1, 2]


def test_diverse_tokens_are_far_from_each_other_and_attended():
    """Distances from the nearest: equal for all but the first, which is attended more."""
    attention = torch.tensor([[0.9, 0.5, 0.5]])
    cut = FlashVID(expansion=1.0).merge(STILL[None], attention, 1)
    assert cut.source.tolist() == [0]


def theirs(scenes, tokens, keep):
    """Rows of a film by the released code's arithmetic: of each scene its frames' trees, counted."""
    budget = math.ceil(tokens * keep * 1.25)
    diverse = math.ceil(budget * 0.7)
    rows = 0
    for left in scenes:
        ratio = (budget - diverse) * len(left) / sum(left)
        rows += sum(diverse + min(trees, math.ceil(trees * ratio)) for trees in left)
    return rows


@pytest.mark.parametrize(("tokens", "keep"), [(100, 0.2), (200, 0.1), (197, 0.2), (82, 0.25), (196, 0.2)])
@pytest.mark.parametrize("form", ["mean", "released"])
def test_clusters_of_a_scene_of_one_frame_are_counted_in_the_order_of_the_code(tokens, keep, form):
    """100 tokens, of which 7 clusters are asked for: 100 · (7 / 100) is 7.000…01, whose ceiling is 8."""
    features = torch.randn(8, tokens, 16, generator=torch.Generator().manual_seed(0))  # eight frames, unlike each other
    method = FlashVID(keep=keep, trees=form)
    wanted = theirs([[tokens]] * 8, tokens, keep)
    assert len(method.merge(features, torch.rand(8, tokens), None).source) == wanted
    assert method.own_count((tokens,)) == wanted / 8 == len(method.merge(features[:1], torch.rand(1, tokens), 3).source)
    budget = FlashVID(retention=0.2, trees=form)
    assert len(budget.merge(features, torch.rand(8, tokens), 8 * 20).source) == 160
