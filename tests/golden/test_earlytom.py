"""Invariant 8 for EarlyTom's rule: which frames are merged, and which of their rows stay, vector by vector."""

import pytest
import torch

from foveate.core.films import attended_places, frame_means, groups, mean_cosines, merged_frames
from tests.golden import cases


@pytest.mark.parametrize("case", cases("earlytom"), ids=lambda case: case.name)
def test_earlytom(case):
    settings, tensors = case.facts["settings"], case.tensors
    frames, attention = tensors["hidden"].float(), tensors["attention"]
    entered = len(frames)

    def grouped(frames):
        return groups(mean_cosines(frames).tolist(), settings["tau"], settings["most"])

    for stage in range(settings["stages"]):
        arriving = grouped(frames)
        merged = merged_frames(mean_cosines(frames).tolist(), arriving)
        frames, attention = frame_means(frames, merged), frame_means(attention, merged)
        is_last = stage == settings["stages"] - 1
        theirs = [(first, last + 1) for first, last in tensors[f"stage{stage}.groups"].tolist()]
        assert (grouped(frames) if is_last else arriving) == theirs
        torch.testing.assert_close(frames, tensors[f"stage{stage}.frames"], atol=1e-6, rtol=0)
    torch.testing.assert_close(attention, tensors["attention_after"], atol=1e-6, rtol=0)

    share = min(settings["retention"] * entered / len(frames), 1)
    places = attended_places(attention, grouped(frames), share)
    assert [len(each) for each in places] == tensors["kept_per_frame"].tolist()
    kept = torch.cat([frame * attention.shape[1] + each for frame, each in enumerate(places)])
    assert kept.tolist() == tensors["kept"].tolist()
    torch.testing.assert_close(frames.flatten(0, 1)[kept], tensors["rows"], atol=1e-6, rtol=0)
