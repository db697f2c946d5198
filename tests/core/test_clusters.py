import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.clusters import density_peaks
from foveate.errors import ShapeError


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


def test_two_heaps_have_a_peak_each():
    heaps = [[0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [5.0, 5.0], [5.1, 5.0], [5.0, 5.3]]
    centres, member = found(heaps, 2)
    assert {centre // 3 for centre in centres} == {0, 1}
    assert len(set(member[:3])) == len(set(member[3:])) == 1


def test_one_cluster_and_as_many_as_rows():
    assert found([[1.0], [5.0], [2.0]], 1)[1] == [0, 0, 0]
    centres, member = found([[1.0], [5.0], [2.0]], 3)
    assert sorted(centres) == [0, 1, 2]
    assert [centres[cluster] for cluster in member] == [0, 1, 2]
    assert found([[7.0, 1.0]], 1) == ([0], [0])


def test_rows_that_are_alike_go_by_index_and_a_centre_stays_in_its_own_cluster():
    assert found([[3.0, 3.0]] * 4, 2) == ([0, 1], [0, 1, 0, 0])


@pytest.mark.parametrize("clusters", [0, 4])
def test_impossible_numbers_are_refused(clusters):
    with pytest.raises(ShapeError, match=f"{clusters} clusters of 3 rows"):
        density_peaks(torch.zeros(3, 2), clusters)


@given(rows=st.integers(1, 30), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_it_is_the_loop_over_pairs(rows, share, seed):
    points = torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    clusters = 1 + int(share * (rows - 1))
    centres, member = density_peaks(points, clusters)
    assert (centres.tolist(), member.tolist()) == slowly(points.tolist(), clusters)


def test_a_batch_is_each_sample_alone_and_half_precision_works():
    points = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    centres, member = torch.func.vmap(lambda rows: density_peaks(rows, 4))(points)
    for index in range(3):
        alone = density_peaks(points[index], 4)
        assert torch.equal(centres[index], alone[0])
        assert torch.equal(member[index], alone[1])
        assert (alone[0].tolist(), alone[1].tolist()) == slowly(points[index].tolist(), 4)
