import pytest
import torch

from foveate.ask.first import First


def test_divergence_is_the_exact_one_on_a_small_vocabulary_and_a_lower_bound_on_a_large_one():
    for size in (40, 3000):
        mine, theirs = torch.randn(2, size, generator=torch.Generator().manual_seed(size)).mul(2).log_softmax(-1)
        exact = float((mine.exp() * (mine - theirs)).sum())
        first = First.of(mine)
        found = first.divergence(First.of(theirs, first.ids))
        assert first.divergence(First.of(mine, first.ids)) == pytest.approx(0, abs=1e-4)
        if size == 40:
            assert found == pytest.approx(exact, rel=1e-3)
        else:
            assert 0.5 * exact < found < exact
