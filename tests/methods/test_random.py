import torch
from hypothesis import given, strategies as st

from foveate.contract import LayerView
from foveate.methods.random import Random, lots

EXAMPLES = [
    Random(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3)),
    Random(layers=(0, 2), keep=(0.5, 0.0), seed=7, min_keep=0, scope="image"),
]
KEEP_ALL = Random(layers=(0, 3), keep=(1.0, 1.0))
SMALLEST = Random(layers=(0, 2), keep=(0.3, 0.0))


def draw(count, tokens, seed):
    return Random(seed=seed).pick(LayerView(tokens=tokens), count)


def test_a_seed_draws_the_same_and_another_seed_others():
    tokens = torch.arange(576)
    assert torch.equal(draw(64, tokens, 3), draw(64, tokens, 3))
    assert not torch.equal(draw(64, tokens, 3), draw(64, tokens, 4))


@given(seed=st.integers(-(2**70), 2**70), tokens=st.integers(1, 300))
def test_a_lot_belongs_to_the_ordinal_not_to_its_place(seed, tokens):
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))
    assert torch.equal(lots(torch.arange(tokens), seed)[order], lots(order, seed))


def test_every_token_is_drawn_equally_often():
    tokens, seeds = torch.arange(60), 2000
    drawn = torch.zeros(60)
    for seed in range(seeds):
        drawn[draw(15, tokens, seed)] += 1
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4; five of them leave room for 60 tokens.
    assert ((drawn - 500).abs() < 5 * 19.4).all()


def test_pairs_are_drawn_together_as_often_as_chance_has_it():
    together = sum({4, 5} <= set(draw(15, torch.arange(60), seed).tolist()) for seed in range(2000))
    expected = 2000 * (15 / 60) * (14 / 59)  # 118.6, standard deviation 10.6
    assert abs(together - expected) < 5 * 10.6
