"""Every picker against a search by hand in plain Python, which shares no code with it."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.picks import cosines, cover, determinantal, max_min, pick_by_crop, quotas, suppress, thin
from foveate.errors import ShapeError
from tests.bench.counting import count


def points(tokens, seed, width=6):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(one, other):
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / max(math.hypot(*one), 1e-12) / max(math.hypot(*other), 1e-12)


def table(rows):
    rows = rows.tolist()
    return [[cosine(one, other) for other in rows] for one in rows]


def best(candidates, score):
    """The candidate with the largest score, the lowest of equals."""
    return min(candidates, key=lambda candidate: (-score(candidate), candidate))


def batched(function, *tensors):
    return torch.func.vmap(function)(*tensors)


# -- cosines ---------------------------------------------------------------------------------------------------


def test_cosines_of_half_precision_are_float32():
    rows = points(9, seed=0).to(torch.bfloat16)
    likeness = cosines(rows)
    assert likeness.dtype == torch.float32
    torch.testing.assert_close(likeness, torch.tensor(table(rows.double())).float(), atol=1e-5, rtol=0)


def test_exact_cosines_are_symmetric_and_1_with_themselves():
    rows = torch.randn(50, 700, generator=torch.Generator().manual_seed(0))
    likeness = cosines(rows, exact=True)
    assert torch.equal(likeness, likeness.T)
    assert torch.equal(likeness.diagonal(), torch.ones(50).double())
    assert torch.equal(likeness * 2**40, (likeness * 2**40).round())
    torch.testing.assert_close(likeness, torch.tensor(table(rows.double()), dtype=torch.float64), atol=2.0**-40, rtol=0)
    for shape in ((7, 33), (9, 64), (50, 700)):  # of the first two a plain product is not symmetric
        rows = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(cosines(rows), cosines(rows).T)


# -- max-min ---------------------------------------------------------------------------------------------------


def farthest_first(distance, count):
    tokens, picked = range(len(distance)), []
    for _ in range(count):
        left = [token for token in tokens if token not in picked]
        to = picked or tokens
        picked.append(
            best(left, lambda token, to=to: min((distance[token][other] for other in to if other != token), default=0))
        )
    return sorted(picked)


@given(tokens=st.integers(1, 12), seed=st.integers(0, 2**16), data=st.data())
def test_max_min_equals_a_search(tokens, seed, data):
    count = data.draw(st.integers(0, tokens))
    distance = torch.cdist(points(tokens, seed), points(tokens, seed))
    assert max_min(distance, count).tolist() == farthest_first(distance.tolist(), count)


@pytest.mark.parametrize("pick", [max_min, lambda matrix, count: suppress(matrix[0], matrix, 0.5, count)])
def test_a_pick_takes_three_operators(pick):
    matrix = torch.rand(12, 12)
    few, many = (count(lambda number=number: pick(matrix, number)).operators for number in (4, 9))
    assert many - few == 5 * 3


def test_max_min_never_picks_twice_also_where_all_are_alike():
    assert max_min(torch.zeros(6, 6), 4).tolist() == [0, 1, 2, 3]
    assert max_min(torch.zeros(6, 6), 6).tolist() == list(range(6))
    # Three copies of each of two tokens: one of each, then copies by index.
    copies = torch.tensor([0.0, 1.0] * 3)
    assert max_min((copies[:, None] - copies).abs(), 4).tolist() == [0, 1, 2, 3]
    assert len(set(max_min(torch.full((5, 5), float("nan")), 5).tolist())) == 5


# -- coverage --------------------------------------------------------------------------------------------------


def cover_by_search(similarity, count, saliency):
    """`similarity[candidate][target]`."""
    picked = []
    targets = range(len(similarity[0]))
    for _ in range(count):
        covered = [max([0, *(similarity[pick][target] for pick in picked)]) for target in targets]

        def gain(candidate, covered=covered):
            row = similarity[candidate]
            return saliency[candidate] * sum(max(0, row[target] - covered[target]) for target in targets)

        picked.append(best([token for token in range(len(similarity)) if token not in picked], gain))
    return sorted(picked)


@given(candidates=st.integers(1, 9), targets=st.integers(1, 9), seed=st.integers(0, 2**16), data=st.data())
def test_cover_equals_a_search(candidates, targets, seed, data):
    count = data.draw(st.integers(0, candidates))
    rng = torch.Generator().manual_seed(seed)
    similarity = torch.randn(candidates, targets, generator=rng, dtype=torch.float64)
    saliency = torch.rand(candidates, generator=rng, dtype=torch.float64)
    assert cover(similarity, count).tolist() == cover_by_search(similarity.tolist(), count, [1] * candidates)
    assert cover(similarity, count, saliency).tolist() == cover_by_search(similarity.tolist(), count, saliency.tolist())


def test_cover_goes_by_index_once_nothing_is_gained():
    assert cover(torch.full((5, 5), -0.5), 3).tolist() == [0, 1, 2]
    assert cover(torch.eye(4), 2, torch.zeros(4)).tolist() == [0, 1]


# -- determinantal ---------------------------------------------------------------------------------------------


@given(tokens=st.integers(1, 7), seed=st.integers(0, 2**16), data=st.data())
def test_determinantal_picks_what_makes_the_determinant_largest(tokens, seed, data):
    count = data.draw(st.integers(1, tokens))
    rows = points(tokens, seed, width=8)
    kernel = rows @ rows.T
    picked = []
    for _ in range(count):
        left = [token for token in range(tokens) if token not in picked]
        picked.append(best(left, lambda token: float(torch.linalg.det(kernel[[*picked, token]][:, [*picked, token]]))))
    assert determinantal(kernel, count).tolist() == sorted(picked)


def test_determinantal_beyond_the_rank_picks_by_index_and_none_twice():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.5]])
    kernel = rows @ rows.T
    assert determinantal(kernel, 2).tolist() == [1, 2]  # 4 is the largest square; then what is left of 2 and 3 is 1
    assert sorted(set(determinantal(kernel, 5).tolist())) == list(range(5))
    assert determinantal(torch.zeros(4, 4), 3).tolist() == [0, 1, 2]
    assert determinantal(torch.full((4, 4), 2.0), 3).tolist() == [0, 1, 2]


# -- suppression -----------------------------------------------------------------------------------------------


def walk(scores, similarity, threshold, count):
    kept, suppressed = [], set()
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    for token in order:
        if len(kept) < count and token not in suppressed:
            kept.append(token)
            suppressed |= {other for other in order if similarity[token][other] >= threshold[token]}
    fill = [token for token in order if token not in kept]
    return sorted(kept + fill[: count - len(kept)])


@given(
    tokens=st.integers(1, 10),
    seed=st.integers(0, 2**16),
    threshold=st.sampled_from([-1.0, 0.2, 0.5, 2.0]),
    data=st.data(),
)
def test_suppress_equals_a_walk(tokens, seed, threshold, data):
    count = data.draw(st.integers(0, tokens))
    scores = data.draw(st.lists(st.integers(0, 4), min_size=tokens, max_size=tokens))
    similarity = cosines(points(tokens, seed, width=3), exact=True)
    picks = suppress(torch.tensor(scores).float(), similarity, threshold, count)
    assert picks.tolist() == walk(scores, similarity.tolist(), [threshold] * tokens, count)
    own = torch.rand(tokens, generator=torch.Generator().manual_seed(seed))
    picks = suppress(torch.tensor(scores).float(), similarity, own, count)
    assert picks.tolist() == walk(scores, similarity.tolist(), own.tolist(), count)


# -- thinning --------------------------------------------------------------------------------------------------


def thin_by_hand(order, similarity, count, per_round):
    while count and len(order) > count:
        even, odd = order[::2], order[1::2]
        nearest = {token: max(similarity[token][other] for other in odd) for token in even}
        falling = sorted(even, key=lambda token: -nearest[token])  # stable: of equals the earlier
        leaving = min(per_round, len(order) - count, len(even))
        order = falling[leaving:] + odd
    return sorted(order[:count])


@given(tokens=st.integers(1, 40), seed=st.integers(0, 2**16), per_round=st.sampled_from([1, 2, 8]), data=st.data())
def test_thin_equals_the_list_by_hand(tokens, seed, per_round, data):
    """Odd lists, and counts so small that a round asks for more than A holds, among them."""
    length = data.draw(st.integers(1, tokens))
    count = data.draw(st.integers(0, length))
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[:length]
    similarity = cosines(points(tokens, seed, width=4), exact=True)
    picks = thin(order, similarity, count, per_round)
    assert picks.tolist() == thin_by_hand(order.tolist(), similarity.tolist(), count, per_round)


def test_thin_breaks_ties_by_place_in_the_list():
    assert thin(torch.arange(9), torch.ones(9, 9), 7, per_round=1).tolist() == thin_by_hand(
        list(range(9)), [[1.0] * 9] * 9, 7, 1
    )


# -- quotas ----------------------------------------------------------------------------------------------------


def shares_by_hand(weights, room, count):
    """As the text says it, in fractions."""
    got = [0] * len(room)
    count = min(count, sum(room))
    claims = [Fraction(weight) for weight in weights]
    while (left := count - sum(got)) > 0:
        if not any(claims):
            claims = [Fraction(space - taken) for space, taken in zip(room, got, strict=True)]
        share = [left * claim / sum(claims) for claim in claims]
        add = [math.floor(part) for part in share]
        heaviest = sorted(range(len(room)), key=lambda group: (-claims[group], group))
        for group in heaviest[: left - sum(add)]:
            add[group] += 1
        got = [min(taken + more, space) for taken, more, space in zip(got, add, room, strict=True)]
        claims = [Fraction(weight) * (space - taken) for weight, space, taken in zip(weights, room, got, strict=True)]
    return got


def test_quotas_by_hand():
    # 10 · (0.45, 0.35, 0.2) is 4.5, 3.5 and 2: floors 4, 3, 2, and the one that is left goes to the heaviest.
    assert quotas(torch.tensor([0.45, 0.35, 0.2]), torch.tensor([9, 9, 9]), 10).tolist() == [5, 3, 2]
    # The first has room for 2 of 6: 4 are left for weight times room left, 0.2 · 8 and 0.2 · 3: 2.9 and 1.09.
    assert quotas(torch.tensor([0.6, 0.2, 0.2]), torch.tensor([2, 10, 5]), 10).tolist() == [2, 5, 3]
    assert quotas(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2, 4, 4]), 6).tolist() == [2, 2, 2]
    assert quotas(torch.zeros(3), torch.tensor([2, 4, 4]), 5).tolist() == [1, 2, 2]
    assert quotas(torch.ones(2), torch.tensor([2, 3]), 9).tolist() == [2, 3]
    assert quotas(torch.ones(2), torch.tensor([2, 3]), 0).tolist() == [0, 0]
    assert quotas(torch.full((3,), 1 / 3), torch.tensor([9, 9, 9]), 9).tolist() == [3, 3, 3]  # not 2.9999…


def test_a_share_that_rounding_has_made_smaller_is_still_whole():
    """Weights 1, 2, …, n and as many tokens as that is: in float32 some shares come out just below a whole number."""
    for groups in range(2, 60):
        weights = torch.arange(1, groups + 1).float() / 3
        count = groups * (groups + 1) // 2
        assert quotas(weights, torch.full((groups,), 99), count).tolist() == list(range(1, groups + 1))


def test_what_many_rounds_cannot_place_goes_to_the_heaviest_with_room():
    """Each weight is a hundredth of the one before, and every group has room for one: a round fills a single group."""
    weights, room = 0.01 ** torch.arange(19), torch.ones(19, dtype=torch.int64)
    assert quotas(weights, room, 18).tolist() == [1] * 18 + [0]
    assert quotas(weights.flip(0), room, 18).tolist() == [0] + [1] * 18


@given(data=st.data(), groups=st.integers(1, 16))
def test_quotas_equal_shares_by_hand(data, groups):
    numbers = st.lists(st.integers(0, 9), min_size=groups, max_size=groups)
    weights, room = data.draw(numbers), data.draw(numbers)
    count = data.draw(st.integers(0, 80))
    shares = quotas(torch.tensor(weights).float(), torch.tensor(room), count).tolist()
    assert shares == shares_by_hand(weights, room, count)
    tiny = torch.tensor(weights).float() * 2.0**-60  # as attention to a high power is
    assert quotas(tiny, torch.tensor(room), count).tolist() == shares


# -- all of them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pick", "count"),
    list(itertools.product((max_min, cover, determinantal), (-1, 4))),
    ids=lambda value: str(value)[:20],
)
def test_more_than_there_are_is_refused(pick, count):
    with pytest.raises(ShapeError, match=f"Cannot pick {count} tokens"):
        pick(torch.zeros(3, 3), count)
    with pytest.raises(ShapeError, match="thin"):
        thin(torch.arange(3), torch.zeros(3, 3), count)


def test_each_crop_picks_its_share():
    values = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])

    def largest(tokens, count):
        return values[tokens].sort(descending=True, stable=True).indices[:count]

    grids = ((2, 2), (2, 4))  # crops 0 1 2 3, 4 5 8 9 and 6 7 10 11
    assert pick_by_crop(grids, values, 6, largest).tolist() == [0, 2, 4, 5, 7, 11]
    assert pick_by_crop(grids, values, 5, largest).tolist() == [0, 2, 4, 5, 11]  # 2, 2 and 1
    assert pick_by_crop(grids, values, 1, largest).tolist() == [2]  # two crops get nothing
    assert pick_by_crop((), values, 3, largest).tolist() == [5, 7, 11]
