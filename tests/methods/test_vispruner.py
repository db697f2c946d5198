import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, ImageView, Shape
from foveate.methods.vispruner import VisPruner
from tests.methods import cosine, stays

EXAMPLES = [
    VisPruner(keep=0.4),
    VisPruner(tokens=7, positions="keep", per_round=2),
    VisPruner(keep=0.3, important_ratio=1.0),
]
SMALLEST = VisPruner(keep=0.001)


def stage_of(cls=True, **settings):
    (stage,) = VisPruner(**settings).stages(Shape(depth=32, cls=cls))
    return stage


def kept(features, attention, grids=(), **settings):
    view = ImageView(features, attention=attention, grids=grids)
    return stays(stage_of(**settings), view)


def by_hand(features, attention, count, ratio=0.5, per_round=8):
    """The spec in plain Python, in double precision."""
    rows = features.double().tolist()

    order = sorted(range(len(rows)), key=lambda token: (-attention[token].item(), token))
    important = int(count * ratio)
    diverse = count - important
    rest = order[important:]
    while diverse and len(rest) > diverse:
        first, second = rest[0::2], rest[1::2]
        most = [max(cosine(rows[one], rows[other]) for other in second) for one in first]
        falling = sorted(range(len(first)), key=lambda place: (-most[place], place))
        out = min(per_round, len(rest) - diverse, len(first))
        rest = [first[place] for place in falling[out:]] + second
    return sorted(order[:important] + (rest if diverse else []))


@given(
    tokens=st.integers(2, 70),
    seed=st.integers(0, 2**16),
    ratio=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    per_round=st.sampled_from([1, 3, 8]),
    data=st.data(),
)
def test_the_kept_set_is_the_specs(tokens, seed, ratio, per_round, data):
    """Odd numbers of important tokens, and budgets of a few tokens, among them: the released code crashes there."""
    count = data.draw(st.integers(1, tokens - 1))
    rng = torch.Generator().manual_seed(seed)
    features, attention = torch.randn(tokens, 8, generator=rng), torch.rand(tokens, generator=rng)
    picks = kept(features, attention, tokens=count, important_ratio=ratio, per_round=per_round)
    assert picks == by_hand(features, attention, count, ratio, per_round)


def test_fastervlm_is_the_highest_attention_and_ties_go_to_the_lower_index():
    attention = torch.tensor([0.2, 0.5, 0.5, 0.1, 0.5])
    assert kept(torch.randn(5, 4), attention, tokens=2, important_ratio=1.0) == [1, 2]
    assert fv.preset("vispruner/llava-1.5-7b/64-fastervlm") == VisPruner(tokens=64, important_ratio=1.0)


def test_equal_tokens_and_tokens_without_direction():
    alike = torch.ones(12, 4)
    attention = torch.linspace(1, 0, 12)
    assert kept(alike, attention, tokens=4) == by_hand(alike, attention, 4)
    assert len(kept(torch.zeros(12, 4), attention, tokens=5)) == 5


def test_cosines_that_float32_cannot_tell_apart_decide():
    """0 is 1e-4 rad from 1, and 2 is 5e-5 rad from 3: cosines of 1 − 5e-9 and 1 − 1.25e-9, so 2 leaves."""
    features = torch.tensor([[1.0, 0.0], [1.0, 1e-4], [0.0, 1.0], [5e-5, 1.0]])
    assert kept(features, torch.linspace(1, 0, 4), tokens=3, important_ratio=0.0) == [0, 1, 3]


def test_each_crop_gets_its_share():
    """A base view of 4 x 4 and a map of two tiles: 12 of 48 tokens are 4 of each, whatever the others look at."""
    rng = torch.Generator().manual_seed(1)
    features, attention = torch.randn(48, 8, generator=rng), torch.rand(48, generator=rng)
    attention[:16] += 1
    crops = [list(range(16))] + [
        [16 + 8 * row + 4 * tile + column for row in range(4) for column in range(4)] for tile in (0, 1)
    ]
    wanted = []
    for crop in crops:
        wanted += [crop[token] for token in by_hand(features[crop], attention[crop], 4)]
    assert kept(features, attention, grids=((4, 4), (4, 8)), tokens=12) == sorted(wanted)


def test_a_closing_newline_counts():
    arriving = Arriving(25, 26, 26, reserved=1)
    assert stage_of(tokens=10).left(arriving) == 9
