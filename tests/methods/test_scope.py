import torch
from hypothesis import given, strategies as st

from foveate.contract import ImageView, Shape
from foveate.methods.scope import Scope
from tests.methods import cosine, covering, stays

EXAMPLES = [Scope(keep=0.4), Scope(tokens=6, alpha=0.5, positions="keep"), Scope(keep=0.3, alpha=0.0)]
SMALLEST = Scope(keep=0.001)


def stage_of(cls=True, **settings):
    (stage,) = Scope(**settings).stages(Shape(depth=32, cls=cls))
    return stage


def kept(features, attention=None, grids=(), **settings):
    return stays(stage_of(**settings), ImageView(features, attention=attention, grids=grids))


def by_hand(features, saliency, count):
    """The spec in plain Python, in double precision."""
    rows = features.double().tolist()
    return covering([[cosine(one, other) for other in rows] for one in rows], count, saliency)


@given(
    tokens=st.integers(1, 24), seed=st.integers(0, 2**16), alpha=st.sampled_from([0.0, 0.5, 1.0, 2.0]), data=st.data()
)
def test_the_kept_set_is_the_specs(tokens, seed, alpha, data):
    count = data.draw(st.integers(1, tokens))
    rng = torch.Generator().manual_seed(seed)
    features, attention = torch.randn(tokens, 6, generator=rng), torch.rand(tokens, generator=rng)
    saliency = (attention.double() ** alpha).tolist()
    assert kept(features, attention, tokens=count, alpha=alpha) == by_hand(features, saliency, count)


def test_equal_tokens_tokens_without_direction_and_no_attention_at_all():
    assert kept(torch.ones(6, 4), torch.ones(6), tokens=3) == [0, 1, 2]
    assert kept(torch.zeros(6, 4), torch.ones(6), tokens=3) == [0, 1, 2]
    assert kept(torch.randn(6, 4), torch.zeros(6), tokens=3) == [0, 1, 2]


def test_gains_that_half_precision_rounds_away_still_decide():
    """Cosines of 1 − 8e-6, 1 − 3e-5 and 1 − 2e-4: in float16, whose steps below 1 are 5e-4, nothing is left to gain."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.004], [1.0, 0.008], [1.0, 0.02]]).half()
    attention = torch.tensor([4e-4, 1e-4, 1e-4, 1e-4])
    assert kept(features, attention, tokens=2) == [0, 3]


def test_two_that_gain_the_same_go_by_index():
    """Two tokens gain 1 + cos each: no rounding of a token's cosine with itself may decide."""
    for seed in range(30):
        features = torch.randn(2, 40, generator=torch.Generator().manual_seed(seed)).abs()
        assert kept(features, tokens=1, alpha=0.0) == [0]


def test_each_crop_gets_its_share():
    """A base view of 2 x 2 and a map of 2 x 4 tokens: 6 of 12 are 2 of each crop; a seventh is the first crop's."""
    rng = torch.Generator().manual_seed(1)
    features, attention = torch.randn(12, 8, generator=rng), torch.rand(12, generator=rng)
    crops = [[0, 1, 2, 3], [4, 5, 8, 9], [6, 7, 10, 11]]

    def wanted(*counts):
        picks = []
        for crop, count in zip(crops, counts, strict=True):
            picks += [crop[token] for token in by_hand(features[crop], attention[crop].tolist(), count)]
        return sorted(picks)

    grids = ((2, 2), (2, 4))
    assert kept(features, attention, grids, tokens=6) == wanted(2, 2, 2)
    assert kept(features, attention, grids, tokens=7) == wanted(3, 2, 2)  # int(7 / 3) of each would be 6
