"""Merging: which tokens become one, what it is, and clusters around the densest."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.cut import Cut
from foveate.core.merge import (
    average,
    density_peaks,
    dominant_and_contextual,
    merge_windows,
    target_plus_mean,
    towards,
    window_similarity,
)
from foveate.errors import ShapeError
from tests.bench.counting import Memory


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def naive(scores, metric, dominant, contextual):
    """The paper's words in loops over tokens: (origin of each row, row of each token)."""
    ranked = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    kept = sorted(ranked[:dominant])
    rest = sorted(ranked[dominant:])
    contextual = min(contextual, len(rest))
    assign = [-1] * len(scores)
    for row, token in enumerate(kept):
        assign[token] = row
    if contextual == 0:
        return kept, assign
    step = max(1, len(rest) // contextual)
    targets = [rest[place * step] for place in range(contextual)]
    for token in rest:
        if token in targets:
            assign[token] = dominant + targets.index(token)
        else:
            near = [cosine(metric[token], metric[target]) for target in targets]
            assign[token] = dominant + near.index(max(near))
    return kept + targets, assign


def test_a_reduction_by_hand():
    scores = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.0])  # dominant 1 and 3; the rest 0, 2, 4, 5; targets 0 and 4
    keys = torch.tensor([[1.0, 0.0], [5.0, 5.0], [3.0, 0.1], [5.0, 5.0], [0.0, 2.0], [0.1, 9.0]])
    merge = dominant_and_contextual(scores, keys, dominant=2, contextual=2)
    assert merge.source.tolist() == [1, 3, 0, 4]
    assert merge.parent.tolist() == [2, 0, 2, 1, 3, 3]
    rows = torch.tensor([[1.0], [2.0], [10.0], [3.0], [4.0], [20.0]])
    assert target_plus_mean(rows, merge)[:, 0].tolist() == [2.0, 3.0, 11.0, 24.0]
    assert average(rows, merge)[:, 0].tolist() == [2.0, 3.0, 5.5, 12.0]


def test_identical_keys_join_the_first_target_alike():
    merge = dominant_and_contextual(torch.zeros(9), torch.ones(9, 3), dominant=1, contextual=2)
    assert merge.source.tolist() == [0, 1, 5]
    assert merge.parent.tolist() == [0, 1, 1, 1, 1, 2, 1, 1, 1]  # 5 is a target itself; ties go to the first


def test_a_key_of_length_zero_does_no_harm():
    merge = dominant_and_contextual(torch.zeros(5), torch.zeros(5, 2), dominant=1, contextual=2)
    assert (merge.parent >= 0).all()


def test_a_target_nobody_joins_stays_what_it_is_and_one_with_a_member_adds_it():
    rows = torch.tensor([[1.5, -2.0], [4.0, 8.0], [0.25, 0.5]])
    merge = Cut.join(torch.tensor([0, 1]), torch.tensor([0, 1, 1]))
    assert torch.equal(target_plus_mean(rows, merge), torch.tensor([[1.5, -2.0], [4.25, 8.5]]))


@given(tokens=st.integers(1, 40), seed=st.integers(0, 2**16), data=st.data())
def test_a_reduction_equals_loops_over_tokens(tokens, seed, data):
    dominant = data.draw(st.integers(1, tokens))
    contextual = data.draw(st.integers(0, tokens))
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 10, (tokens,), generator=rng).float()  # ties abound
    metric = torch.randn(tokens, 5, generator=rng)
    merge = dominant_and_contextual(scores, metric, dominant, contextual)
    origin, assign = naive(scores.tolist(), metric.double().tolist(), dominant, contextual)
    assert merge.source.tolist() == origin
    assert merge.parent.tolist() == assign
    rows = torch.randn(tokens, 3, generator=rng)
    for row, target in enumerate(origin):
        went = [token for token in range(tokens) if assign[token] == row]
        others = [rows[token] for token in went if token != target]
        total = rows[target] + (torch.stack(others).mean(dim=0) if others else 0)
        torch.testing.assert_close(target_plus_mean(rows, merge)[row], total)
        torch.testing.assert_close(average(rows, merge)[row], rows[went].mean(dim=0))


def test_merged_rows_have_their_inputs_dtype_and_are_summed_in_float32():
    # 256 + 1 is 256 in bfloat16: a running sum in it would never move.
    rows = torch.cat((torch.full((1, 1), 256.0), torch.ones(512, 1))).bfloat16()
    merge = Cut.join(torch.tensor([0]), torch.zeros(513, dtype=torch.int64))
    assert average(rows, merge).dtype == torch.bfloat16
    assert average(rows, merge).item() == pytest.approx((256 + 512) / 513, rel=0.01)
    assert target_plus_mean(rows, merge).item() == pytest.approx(257, rel=0.01)


# -- windows -------------------------------------------------------------------------------------------------


def into_windows(similarity, threshold, height, width, window):
    """The windows that reach the threshold merged, as the host has it once it knows the count."""
    return merge_windows(similarity, int((similarity >= threshold).sum()), height, width, window)


@given(height=st.integers(2, 9), width=st.integers(2, 9), window=st.integers(2, 3), seed=st.integers(0, 2**16))
def test_windows_equal_loops_over_them(height, width, window, seed):
    if min(height, width) < window:
        return
    corners = [
        (top, left) for top in range(0, height - window + 1, window) for left in range(0, width - window + 1, window)
    ]
    similarity = torch.randint(0, 4, (len(corners),), generator=torch.Generator().manual_seed(seed)).float()
    ranked = sorted(range(len(corners)), key=lambda index: (-similarity[index].item(), index))
    origin, assign = [], [-1] * (height * width)
    for index in ranked:
        if similarity[index] >= 2:
            top, left = corners[index]
            cells = [(top + i) * width + left + j for i in range(window) for j in range(window)]
            for cell in cells:
                assign[cell] = len(origin)
            origin.append(cells[len(cells) // 2])
    for token in range(height * width):
        if assign[token] < 0:
            assign[token] = len(origin)
            origin.append(token)
    merge = into_windows(similarity, 2, height, width, window)
    assert merge.source.tolist() == origin
    assert merge.parent.tolist() == assign


@given(height=st.integers(2, 9), width=st.integers(2, 9), window=st.integers(2, 3), seed=st.integers(0, 2**16))
def test_similarity_is_the_mean_over_ordered_pairs(height, width, window, seed):
    rows = torch.randn(height * width, 4, generator=torch.Generator().manual_seed(seed))
    if min(height, width) < window:
        with pytest.raises(ShapeError, match="window"):
            window_similarity(rows, height, width, window)
        return
    wanted = []
    for top in range(0, height - window + 1, window):
        for left in range(0, width - window + 1, window):
            cells = [(top + i) * width + left + j for i in range(window) for j in range(window)]
            pairs = [
                cosine(rows[p].double().tolist(), rows[q].double().tolist()) for p in cells for q in cells if p != q
            ]
            wanted.append(sum(pairs) / len(pairs))
    assert window_similarity(rows, height, width, window).tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_flat_grid_of_zeros_is_no_division_by_zero():
    assert torch.isfinite(window_similarity(torch.zeros(9, 2), 3, 3, 3)).all()


def test_blocks_of_rows_find_the_same_targets(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    scores, metric = torch.rand(200, generator=rng), torch.randn(200, 6, generator=rng)
    whole = dominant_and_contextual(scores, metric, 20, 9)
    monkeypatch.setattr("foveate.core.tensors.BLOCK_NUMBERS", 5 * 9)
    with Memory() as watch:
        parts = dominant_and_contextual(scores, metric, 20, 9)
    assert watch.largest <= metric.numel()  # and no matrix of 180 rows and 9 targets
    assert parts.parent.tolist() == whole.parent.tolist()
    assert parts.source.tolist() == whole.source.tolist()


def slowly(rows, clusters):
    """Density peaks, pair by pair."""
    rows, places = [[float(number) for number in row] for row in rows], range(len(rows))
    far = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows] for a in rows]
    density = [math.exp(-sum(value**2 for value in sorted(line)[:clusters]) / clusters) for line in far]
    most = max(max(line) for line in far)
    apart = [min([far[a][b] for b in places if (density[b], -b) > (density[a], -a)], default=most) for a in places]
    centres = sorted(places, key=lambda place: (-density[place] * apart[place], place))[:clusters]
    member = [min(range(clusters), key=lambda cluster: far[place][centres[cluster]]) for place in places]
    for cluster, centre in enumerate(centres):
        member[centre] = cluster
    return centres, member


def found(rows, clusters):
    centres, member = density_peaks(torch.tensor(rows), clusters)
    return centres.tolist(), member.tolist()


def test_two_heaps_on_a_line_by_hand():
    """0 1 2 and 10 11.5, two nearest each, the row itself among them: the second is 1 1 1 and 1.5 1.5 away.

    Densities exp(−1/2) three times and exp(−9/8) twice, the first of each the densest. So 0 is 11.5 apart (the largest
    distance), 1 and 2 are 1 from a denser one, 10 is 8 from 2, 11.5 is 1.5 from 10. Peaks: 0 (11.5 · .61) and 10
    (8 · .32).
    """
    assert found([[0.0], [1.0], [2.0], [10.0], [11.5]], 2) == ([0, 3], [0, 0, 0, 1, 1])


def test_rows_that_are_alike_go_by_index_and_a_centre_stays_in_its_own_cluster():
    assert found([[3.0, 3.0]] * 4, 2) == ([0, 1], [0, 1, 0, 0])


@given(rows=st.integers(1, 30), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_it_is_the_loop_over_pairs(rows, share, seed):
    points = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clusters = 1 + int(share * (rows - 1))
    centres, member = density_peaks(points, clusters)
    assert (centres.tolist(), member.tolist()) == slowly(points.tolist(), clusters)


def test_centres_move_towards_the_mean_of_what_joined_them_by_hand():
    centres = torch.tensor([[0.0], [10.0], [20.0]])
    rows = torch.tensor([[4.0], [12.0], [16.0], [99.0]])
    cluster = torch.tensor([0, 1, 1, -1])
    # One row joined: half and half. Two joined: a third of 10 and two thirds of 14. None joined: it stays.
    moved = towards(centres, rows, cluster, least=0.0)
    torch.testing.assert_close(moved, torch.tensor([[2.0], [38 / 3], [20.0]]))
    heavy = towards(centres, rows, cluster, least=0.75)
    torch.testing.assert_close(heavy, torch.tensor([[1.0], [11.0], [20.0]]))
