import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.budget import keep_count, mean_tokens, shared_out


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


def test_shares_by_hand():
    assert shared_out(160, [576] * 5) == [32] * 5
    assert shared_out(64, [576] * 5) == [13, 13, 13, 13, 12]
    assert shared_out(10, [4, 12, 4]) == [2, 6, 2]
    assert shared_out(3, [1, 1, 9]) == [0, 0, 3]  # 0.27, 0.27, 2.45
    assert shared_out(0, [3, 3]) == [0, 0]
    assert shared_out(0, []) == []


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_shares_sum_exactly_and_fit(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    found = shared_out(count, sizes)
    assert sum(found) == count
    for share, size in zip(found, sizes, strict=True):
        assert share <= size
        assert abs(share * sum(sizes) - count * size) < max(sum(sizes), 1)
