"""Frames in groups, merged: EarlyTom's rule by hand and by properties."""

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.films import (
    FrameMean,
    attended_places,
    best_of_runs,
    frame_means,
    groups,
    mean_cosines,
    merged_frames,
)


def a_film(frames, seed, alike=1.0):
    made = torch.Generator().manual_seed(seed)
    steps = torch.randn(frames, 4, 6, generator=made)
    return torch.randn(1, 4, 6, generator=made) * alike + steps.cumsum(0)


def cosines_between(frames, default, **pairs):
    """A matrix of cosines: `default` but on the diagonal and for `pairs`, named as "_0_1"."""
    found = [[1.0 if i == j else default for j in range(frames)] for i in range(frames)]
    for name, value in pairs.items():
        i, j = map(int, name[1:].split("_"))
        found[i][j] = found[j][i] = value
    return found


def test_cosines_are_of_places_and_their_mean():
    frames = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 0.0], [1.0, 0.0]]])
    torch.testing.assert_close(mean_cosines(frames), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


def test_cosines_of_equal_frames_tie():
    frames = torch.randn(1, 50, 64, generator=torch.Generator().manual_seed(0))
    lengthened = frames * torch.tensor([1.0, 3.0, 0.7, 11.0])[:, None, None]
    assert torch.equal(mean_cosines(lengthened), torch.ones(4, 4))


def test_a_group_ends_before_it_has_the_most_frames():
    assert groups(cosines_between(7, 1.0), 0.5, 4) == [(0, 3), (3, 6), (6, 7)]


def test_a_group_forgets_what_was_slowly():
    """Behind a first frame that is like nobody s is .9 · .4 + .1 · 1 = .46, and .9 · .4 + .1 · .46 = .406 next."""
    cosines = cosines_between(3, 0.4)
    assert groups(cosines, 0.46, 9) == [(0, 2), (2, 3)]
    assert groups(cosines, 0.41, 9) == [(0, 2), (2, 3)]
    assert groups(cosines, 0.40, 9) == [(0, 3)]
    assert groups(cosines, 0.47, 9) == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_groups_of_up_to_three_stay(frames):
    stay = [FrameMean(frame, frame, 1.0) for frame in range(frames)]
    assert merged_frames(cosines_between(frames, 1.0), [(0, frames)]) == stay


def test_of_two_middle_frames_the_first_stays():
    """Whether they are merged, with a weight of 1, or not."""
    for alike in (0.9, 0.1):
        merged = merged_frames(cosines_between(4, 0.5, _1_2=alike), [(0, 4)])
        assert [mean.first for mean in merged] == [0, 1, 3]
        assert merged[1].weight == 1


def test_two_frames_become_one_by_how_alike_they_and_the_next_are():
    cosines = cosines_between(5, 0.5, _1_2=0.9, _2_3=0.6)
    assert merged_frames(cosines, [(0, 5)]) == [
        FrameMean(0, 0, 1.0),
        FrameMean(1, 2, 0.9 / 1.5),
        FrameMean(4, 4, 1.0),
    ]
    cosines = cosines_between(5, 0.5, _1_2=0.6, _2_3=0.9)  # the next two are more alike
    assert [(mean.first, mean.second) for mean in merged_frames(cosines, [(0, 5)])] == [(0, 0), (1, 1), (2, 3), (4, 4)]


@given(
    frames=st.integers(1, 30), seed=st.integers(0, 50), below=st.sampled_from([0.0, 0.5, 0.9]), most=st.integers(2, 8)
)
def test_groups_and_what_they_become(frames, seed, below, most):
    film = a_film(frames, seed)
    cosines = mean_cosines(film).tolist()
    found = groups(cosines, below, most)
    assert [frame for group in found for frame in range(*group)] == list(range(frames))
    assert all(end - start < most for start, end in found)
    merged = merged_frames(cosines, found)
    places = [mean.first for mean in merged]
    assert places == sorted(set(places))  # a merged frame stands where its first member stood
    members = [frame for mean in merged for frame in sorted({mean.first, mean.second})]
    assert members == sorted(set(members))
    assert {edge for start, end in found for edge in (start, end - 1)} <= set(places)
    assert all(mean.second - mean.first in (0, 1) for mean in merged)
    assert all(mean.weight == 1 for mean in merged if mean.first == mean.second)
    rows = frame_means(film, merged)
    alone = [place for place, mean in enumerate(merged) if mean.first == mean.second]
    assert torch.equal(rows[alone], film[[merged[place].first for place in alone]])


def test_means_keep_their_dtype():
    film = torch.tensor([[1.0], [3.0]], dtype=torch.bfloat16)
    rows = frame_means(film, [FrameMean(0, 1, 0.25)])
    assert rows.dtype == torch.bfloat16
    assert rows.tolist() == [[2.5]]


def test_the_best_of_each_run():
    """Three runs of eight places are of three, three and two; of equals the first."""
    scores = torch.tensor([[0.1, 0.3, 0.3, 0.9, 0.2, 0.8, 0.5, 0.6], [7.0, 6, 5, 4, 3, 2, 1, 0]])
    assert best_of_runs(scores, 3).tolist() == [[1, 3, 7], [0, 3, 6]]


def test_ends_go_by_attention_and_middle_frames_by_runs():
    attention = torch.tensor([[4.0, 3.0, 2.0, 1.0]]).expand(5, -1)
    kept = attended_places(attention, [(0, 3), (3, 5)], 0.5)
    assert [each.tolist() for each in kept] == [[0, 1], [0, 2], [0, 1], [0, 1], [0, 1]]


@given(places=st.integers(1, 30), share=st.floats(0.01, 1))
def test_how_many_places_stay(places, share):
    attention = torch.rand(3, places, generator=torch.Generator().manual_seed(places))
    first, middle, last = attended_places(attention, [(0, 3)], share)
    assert len(first) == len(last) == math.ceil(places * share)
    assert len(middle) == max(1, round(places * share))
    for each in (first, middle, last):
        assert all(earlier < later for earlier, later in itertools.pairwise(each.tolist()))
