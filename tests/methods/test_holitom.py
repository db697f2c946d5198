import dataclasses

import pytest
import torch
from hypothesis import assume, given, strategies as st

from foveate.core.film_scenes import still_places, still_scenes
from foveate.methods.fastvid import FastVID
from foveate.methods.flashvid import FlashVID
from foveate.methods.holitom import HoliTom

EXAMPLES = [HoliTom(keep=0.4, tau=0.5), HoliTom(retention=0.5)]
BY_SCENE = [HoliTom(), FastVID(), FastVID(rule="qwen", tau=0.5), FlashVID(), FlashVID(form="events")]


def scenes_of(*still):
    """The cutting of a film, of whose places each row says which stood still at a step."""
    return still_scenes(still_places(torch.tensor(still, dtype=torch.bool)).tolist())


def test_scenes_save_as_much_as_can_be_saved():
    """Two places: the first stands still through all four frames, the second but for the middle step. One scene saves
    3 · 1, two scenes of two frames 2 + 2."""
    assert scenes_of([1, 1], [1, 0], [1, 1]) == ([(0, 2), (2, 4)], 4)
    assert scenes_of([1, 0], [1, 0], [1, 0]) == ([(0, 4)], 3)
    assert scenes_of([0, 0], [0, 0]) == ([(0, 1), (1, 2), (2, 3)], 0)


def test_a_still_place_is_the_mean_of_its_scene():
    """Two of three places stand still through two frames. Of the four rows that are left once these are kept once, all
    stay: two means, and in each frame the third place."""
    features = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]])
    cut = HoliTom(keep=2 / 3, tau=0.9).merge(features, torch.ones(2, 3), None)
    assert cut.source.tolist() == [0, 1, 2, 5]
    torch.testing.assert_close(cut.rows, torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 0.0], [0.0, 1.0]]))
    assert cut.parent.tolist() == [0, 1, 2, 0, 1, 3]


@pytest.mark.parametrize("method", [HoliTom(keep=0.05, tau=-1.0), FastVID(keep=0.05), FastVID(keep=0.05, rule="qwen")])
def test_a_film_of_which_nothing_is_left_keeps_its_most_attended_token(method):
    cut = method.merge(torch.ones(2, 3, 6), torch.tensor([[0.1, 0.3, 0.2], [0.3, 0.1, 0.1]]), None)
    assert cut.source.tolist() == [1]
    assert cut.parent.tolist() == [-1, 0, -1, -1, -1, -1]


def test_what_moves_goes_by_attention():
    features = torch.eye(6).view(2, 3, 6)  # no token is like any other
    attention = torch.tensor([[0.1, 0.3, 0.2], [0.9, 0.7, 0.8]])
    cut = HoliTom(keep=0.5).merge(features, attention, None)  # ⌈1.5⌉ of each frame
    assert cut.source.tolist() == [1, 2, 3, 5]
    assert cut.parent.tolist() == [-1, 0, 1, 2, -1, 3]


@pytest.mark.parametrize("method", BY_SCENE, ids=lambda method: f"{method.name}-{method.to_dict()}"[:30])
@given(frames=st.integers(1, 12), tokens=st.integers(1, 9), still=st.booleans(), seed=st.integers(0, 9))
def test_a_budget_is_met_to_the_token(method, frames, tokens, still, seed):
    """Also of fewer frames than a method's constants, and of a film in which nothing moves."""
    method = method.with_budget(retention=0.5)
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(1 if still else frames, tokens, 5, generator=random).expand(frames, -1, -1)
    attention = torch.rand(frames, tokens, generator=random)
    for count in {1, frames * tokens // 2, frames * tokens - 1} - {0}:
        cut = method.merge(features, attention, count)
        source = cut.source.tolist()
        assert len(source) == len(set(source)) == count
        assert cut.parent[cut.source].tolist() == list(range(count))
        assert int(cut.parent.max()) < count
    assert torch.isfinite(method.merge(features, attention, None).rows).all()


@pytest.mark.parametrize("method", BY_SCENE, ids=lambda method: f"{method.name}-{method.to_dict()}"[:30])
@given(tokens=st.integers(2, 60), keep=st.sampled_from([0.15, 0.2, 0.4, 0.68, 0.8]))
def test_one_frame_of_a_known_count_is_what_the_method_makes_of_it(method, tokens, keep):
    """The counts that the host knows beforehand round as the method's own: 12 · 0.2 · 1.25, 22 · (15 / 22)."""
    method = dataclasses.replace(method, keep=keep)
    random = torch.Generator().manual_seed(tokens)
    film = torch.randn(1, tokens, 5, generator=random), torch.rand(1, tokens, generator=random)
    known = method.own_count((tokens,))
    assume(int(tokens * keep))
    own, told = method.merge(*film, None), method.merge(*film, known)
    assert own.source.tolist() == told.source.tolist()
    assert torch.equal(own.rows, told.rows)
