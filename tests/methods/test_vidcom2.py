import math

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, ImageView
from foveate.core.rank import by_quota
from foveate.methods.vidcom2 import VidCom2
from tests.methods import stage_of, stays
from tests.models import batch, features, tiny

EXAMPLES = [VidCom2(keep=0.4), VidCom2(retention=0.3, positions="reindex")]
SMALLEST = VidCom2(keep=0.001)


def film(rows, frames, video=True, **known):
    """A view of a film of equal frames; of a picture where `video` is false."""
    grids = ((1, len(rows) // frames),) * frames
    arriving = Arriving(len(rows), known.pop("entered", len(rows)), len(rows), grids=grids, video=video, **known)
    return ImageView(rows, grids=grids, arriving=arriving)


def kept(method, rows, frames, **known):
    """Which tokens of a film stay, as a list."""
    return stays(stage_of(method), film(rows, frames, **known))


# -- the paper's rule ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.1, 0.4, 0.9])
def test_of_one_frame_the_count_is_known_beforehand(keep):
    method, rows = VidCom2(keep=keep), torch.randn(14, 8, generator=torch.Generator().manual_seed(1))
    assert method.own_count((14,)) == len(kept(method, rows, 1))
    assert method.own_count((7, 7)) is None


def test_one_frame_can_get_twice_the_rate_and_never_more_than_it_has():
    still = torch.tensor([1.0, 0.0, 9.0, -9.0]).repeat(12, 1)
    still[8:] = torch.tensor([0.0, 1.0, -9.0, 9.0])  # the last two channels vary most and do not count
    counts = [sum(token // 4 == frame for token in kept(VidCom2(keep=0.5), still, 3)) for frame in range(3)]
    assert counts == [1, 1, 3]  # 4 · 0.5 · (1 − 1/3), the same, and 4 · 0.5 · (1 + 2/3)
    counts = [sum(token // 4 == frame for token in kept(VidCom2(keep=0.9), still, 3)) for frame in range(3)]
    assert counts == [2, 2, 4]  # the third is clamped: 8 of 12 stay, where 0.9 · 12 are 10.8


def test_a_frame_keeps_one_token_however_low_the_rate():
    assert len(kept(VidCom2(keep=0.001), torch.randn(20, 8), 5)) == 5
    assert kept(VidCom2(keep=0.001), torch.randn(1, 8), 1) == [0]


def test_a_picture_is_one_frame_however_many_views_it_has():
    rows = torch.randn(12, 8)
    assert kept(VidCom2(keep=0.5), rows, 3, video=False) == kept(VidCom2(keep=0.5), rows, 1)
    assert len(kept(VidCom2(keep=0.5), rows, 3, video=False)) == 6


def test_tokens_without_direction_tie_and_the_lower_index_stays():
    assert kept(VidCom2(keep=0.5), torch.zeros(8, 4), 2) == [0, 1, 4, 5]


def test_a_single_channel_is_not_halved_to_none():
    assert len(kept(VidCom2(keep=0.5), torch.randn(8, 1), 2)) == 4


def test_half_precision_is_scored_in_float32():
    rows = torch.randn(24, 16).bfloat16()
    assert kept(VidCom2(keep=0.5), rows, 3) == kept(VidCom2(keep=0.5), rows.float(), 3)


# -- exact budgets ---------------------------------------------------------------------------------------------


def test_largest_remainders_by_hand():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [9.0, 8.0, 7.0]])
    assert by_quota(scores, torch.tensor([2.6, 1.3, 1.1]), 5).tolist() == [0, 1, 2, 3, 8]
    assert by_quota(scores, torch.tensor([2.6, 0.4, 0.0]), 3).tolist() == [0, 1, 2]
    assert by_quota(scores, torch.tensor([2.6, 0.4, 0.0]), 3, least=1).tolist() == [1, 3, 8]
    # the first has three: what it cannot use goes to the others, one each
    assert by_quota(scores, torch.tensor([5.0, 0.5, 0.5]), 5).tolist() == [0, 1, 2, 3, 8]
    assert by_quota(scores, torch.tensor([1.0, 1.0, 1.0]), 0).tolist() == []


@pytest.mark.parametrize("kind", [VidCom2, fv.EVS, fv.DTD, fv.DyCoke])
@given(frames=st.integers(2, 9), tokens=st.integers(1, 9), share=st.floats(0.05, 1, exclude_max=True))
def test_a_budget_is_met_exactly_or_its_floor_is_named(kind, frames, tokens, share):
    """VidCom2 leaves a token of each frame where there are enough, the others the frames that they compare with."""
    rows = torch.randn(frames * tokens, 5, generator=torch.Generator().manual_seed(frames + 13 * tokens))
    total, whole = max(1, math.floor(share * len(rows) + 0.5)), {VidCom2: 0, fv.DyCoke: -(-frames // 4)}.get(kind, 1)
    if total < whole * tokens:
        with pytest.raises(fv.BudgetError, match=f"floor is {whole / frames:.2%}, {whole * tokens} tokens"):
            kept(kind(retention=share), rows, frames)
        return
    left = kept(kind(retention=share), rows, frames)
    assert len(left) == len(set(left)) == total
    counts = [sum(token // tokens == frame for token in left) for frame in range(frames)]
    if kind is VidCom2:
        assert min(counts) >= 1 or total < frames
    if kind is fv.DyCoke:
        others = [count for frame, count in enumerate(counts) if frame % 4]
        assert others == sorted(others, reverse=True)  # the remainder goes to the earlier ones
        assert max(others) - min(others) <= 1
    assert kind is VidCom2 or counts[0] == tokens


def test_a_closing_newline_is_one_of_the_tokens_of_a_budget():
    stage = stage_of(VidCom2(tokens=9))
    assert stage.left(Arriving(24, 25, 24, reserved=1, grids=((2, 4),) * 3, video=True)) == 8
    assert stage.left(Arriving(5, 5, 5, grids=((1, 5),))) == 5


# -- on models -------------------------------------------------------------------------------------------------


def test_frames_that_are_not_known_are_refused():
    rows = torch.randn(8, 4)
    with pytest.raises(fv.UnsupportedError, match="frames"):
        stage_of(VidCom2()).cut(ImageView(rows))


@pytest.mark.parametrize("method", [VidCom2(keep=0.4), VidCom2(retention=0.4)], ids=["rule", "exact"])
def test_each_video_of_a_prompt_is_treated_by_itself(method):
    model = tiny("llava_onevision")
    inputs = batch("llava_onevision", ["tvtvt"])
    pixels = inputs["pixel_values_videos"]
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**inputs)
    whole = features(model, inputs, "video")
    (stage,) = trace.stages
    expected, before = [], 0
    for video in whole:
        patches = video[:-1]
        cut = stage_of(method).cut(film(patches, pixels.shape[1], entered=len(video), reserved=1))
        expected += [before + token for token in cut.source[: int(cut.count)].tolist()] + [before + len(patches)]
        before += len(video)
    assert stage.kept[0].tolist() == expected
    assert len(expected) < before
