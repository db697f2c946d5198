import math

import torch
from hypothesis import given, strategies as st

from foveate.contract import LayerView, Shape
from foveate.methods.mmtok import MMTok
from tests.methods import cosine, covering, stays

EXAMPLES = [MMTok(keep=0.4), MMTok(tokens=6, alpha=1.0, tau_text=0.1, positions="keep")]
SMALLEST = MMTok(keep=0.001)


def kept(words, rows, features, **settings):
    _, pick = MMTok(**settings).stages(Shape(depth=32))
    return stays(pick, LayerView(rows, text=words, notes={"features": features}))


def by_hand(words, tokens, features, count, alpha=0.5, tau_text=0.02, tau_vision=0.2):
    """The spec in plain Python, in double precision."""

    def shares(target, candidates, tau):
        powers = [math.exp((cosine(target, candidate) - 1) / tau) for candidate in candidates]
        return [power / sum(powers) for power in powers]

    words, tokens, features = words.tolist(), tokens.tolist(), features.tolist()
    targets = [[share / len(words) for share in shares(word, tokens, tau_text)] for word in words]
    targets += [[alpha * share / len(tokens) for share in shares(one, features, tau_vision)] for one in features]
    return covering(targets, count)


@given(
    tokens=st.integers(2, 14),
    words=st.integers(1, 5),
    alpha=st.sampled_from((0.5, 2.0)),
    tau=st.sampled_from((0.02, 0.3)),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_picks_are_those_of_the_spec(tokens, words, alpha, tau, seed, data):
    rng = torch.Generator().manual_seed(seed)
    text, rows = torch.randn(words, 6, generator=rng), torch.randn(tokens, 6, generator=rng)
    features, count = torch.randn(tokens, 9, generator=rng), data.draw(st.integers(1, tokens))
    wanted = by_hand(text, rows, features, count, alpha, tau)
    assert kept(text, rows, features, tokens=count, alpha=alpha, tau_text=tau) == wanted


def test_without_text_vision_tokens_alone_are_covered():
    rng = torch.Generator().manual_seed(0)
    rows, features, text = (torch.randn(9, 6, generator=rng) for _ in range(3))
    assert kept(text[:0], rows, features, tokens=4) == kept(text[:0], rows * 0, features, tokens=4)
    same = torch.ones(9, 6)  # words say nothing about tokens that are all alike
    assert kept(text[:0], rows, features, tokens=1) == by_hand(text, same, features, 1)
