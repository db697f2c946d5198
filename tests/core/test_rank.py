"""How many tokens stay, and which: counts as the released codes round them, ties to the lower index."""

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.rank import into_runs, put_marked_first, ranks_in_groups, share_out, spread, top
from foveate.errors import ShapeError


def test_shares_by_hand():
    assert share_out(160, [576] * 5) == [32] * 5
    assert share_out(64, [576] * 5) == [13, 13, 13, 13, 12]
    assert share_out(10, [4, 12, 4]) == [2, 6, 2]
    assert share_out(3, [1, 1, 9]) == [0, 0, 3]  # 0.27, 0.27, 2.45
    assert share_out(7, [7] * 3) == [3, 2, 2]
    assert share_out(0, [3, 3]) == [0, 0]
    assert share_out(0, []) == []


@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), data=st.data())
def test_shares_sum_exactly_and_fit(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    shares = share_out(count, sizes)
    assert sum(shares) == count
    for share, size in zip(shares, sizes, strict=True):
        assert share <= size
        assert abs(share * sum(sizes) - count * size) < max(sum(sizes), 1)


@given(scores=st.lists(st.integers(-3, 3), max_size=60), data=st.data())
def test_top_equals_sorting_pairs(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    wanted = sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])
    highest = top(torch.tensor(scores, dtype=torch.float32), count)
    assert highest.tolist() == wanted
    assert highest.dtype == torch.int64


@pytest.mark.parametrize(("shape", "count"), [((4,), 5), ((4,), -1), ((2, 2), 1), ((), 0)])
def test_more_than_there_are_is_refused(shape, count):
    with pytest.raises(ShapeError, match="Cannot take the top"):
        top(torch.zeros(shape), count)


@given(rows=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=3))
def test_marked_tokens_come_first_and_both_kinds_in_order(rows):
    by_hand = [sorted(range(7), key=lambda place: (not row[place], place)) for row in rows]
    assert put_marked_first(torch.tensor(rows)).tolist() == by_hand


@given(pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), max_size=40))
def test_ranks_in_groups_equal_counting_those_before(pairs):
    groups = torch.tensor([group for group, _ in pairs], dtype=torch.int64)
    scores = torch.tensor([float(score) for _, score in pairs])

    def place(index):
        group, score = pairs[index]
        mine = [(other, -at) for at, (its, other) in enumerate(pairs) if its == group]
        return sum(better > (score, -index) for better in mine)

    assert ranks_in_groups(scores, groups).tolist() == [place(index) for index in range(len(pairs))]


@given(tokens=st.integers(0, 300), data=st.data())
def test_spread_takes_the_middle_of_equal_cells(tokens, data):
    count = data.draw(st.integers(0, tokens))
    places = spread(tokens, count).tolist()
    assert places == [int((place + 0.5) * tokens / count) for place in range(count)]
    assert len(set(places)) == count


def test_spreading_more_than_there_are_is_refused():
    with pytest.raises(ShapeError, match="indices"):
        spread(3, 4)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6), st.randoms())
def test_rows_stand_in_the_first_places_of_their_runs(sizes, random):
    places = torch.tensor([run for run, (free, taken) in enumerate(sizes) for _ in range(free + taken)])
    rows = [run for run, (_, taken) in enumerate(sizes) for _ in range(taken)]
    random.shuffle(rows)
    order, where = into_runs(torch.tensor(rows, dtype=torch.long), places)
    assert sorted(order.tolist()) == list(range(len(rows)))
    expected, told = [], {run: iter((places == run).nonzero()[:, 0].tolist()) for run in range(len(sizes))}
    for run in sorted(rows):
        expected.append(next(told[run]))
    assert where.tolist() == expected
    for run in range(len(sizes)):
        assert order[places[where] == run].tolist() == [i for i, one in enumerate(rows) if one == run]
