import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.budget import keep_count, mean_tokens


@pytest.mark.parametrize(
    ("tokens", "ratio", "minimum", "stays"),
    [
        (576, 0.5, 1, 288),
        (288, 0.3, 1, 86),
        (86, 0.0, 1, 1),
        (86, 0.0, 0, 0),
        (100, 0.29, 1, 28),  # 28.999999999999996, as the released code truncates it
        (5, 0.1, 3, 3),
        (2, 0.1, 3, 2),  # no more than there are
        (7, 1.0, 1, 7),
    ],
)
def test_counts_by_hand(tokens, ratio, minimum, stays):
    assert keep_count(tokens, ratio, minimum) == stays


@given(tokens=st.integers(0, 10_000), ratio=st.floats(0, 1), minimum=st.integers(0, 20))
def test_a_count_lies_between_its_minimum_and_what_is_there(tokens, ratio, minimum):
    count = keep_count(tokens, ratio, minimum)
    assert min(tokens, minimum) <= count <= tokens
    assert abs(count - tokens * ratio) < 1 or count == min(tokens, minimum)


def test_a_budget_is_the_mean_over_layers():
    assert mean_tokens([48] * 8 + [35] * 8 + [26] * 8 + [19] * 8) == 32
    assert mean_tokens([200] * 3 + [100] * 29) == 109.375
