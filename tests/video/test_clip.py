"""What a clip tells of itself."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.video import Clip


def clip(seconds, start=0.0, end=10.0, rate=10.0):
    frames = np.arange(len(seconds), dtype=np.uint8)[:, None, None, None] + np.zeros((1, 4, 6, 3), np.uint8)
    return Clip(Path("clip.mp4"), frames, tuple(seconds), start, end, rate)


def test_its_frames_are_pictures():
    first, second = clip((0.0, 5.0)).images()
    assert isinstance(first, Image.Image)
    assert (first.size, first.mode) == ((6, 4), "RGB")
    assert second.getpixel((0, 0)) == (1, 1, 1)


def test_metadata_count_the_files_frames():
    assert clip((1.2, 3.7)).metadata() == {
        "fps": 10, "duration": 10, "total_num_frames": 100, "frames_indices": [12, 37],
    }  # fmt: skip


def test_metadata_of_a_part_begin_with_it():
    told = clip((4.0, 5.5), start=4.0, end=6.0).metadata()
    assert (told["duration"], told["total_num_frames"], told["frames_indices"]) == (2, 20, [0, 15])


def test_where_frames_come_unsteadily_ticks_are_fine_enough_for_their_times():
    told = clip((0.0, 0.333, 4.125)).metadata()
    assert [index / told["fps"] for index in told["frames_indices"]] == pytest.approx([0, 0.333, 4.125], abs=1e-3)
    assert told["total_num_frames"] / told["fps"] == told["duration"]


def test_thinned_it_keeps_the_middles_of_equal_parts():
    thin = clip([float(at) for at in range(8)]).thinned(4)
    assert thin.seconds == (1, 3, 5, 7)
    assert thin.frames[:, 0, 0, 0].tolist() == [1, 3, 5, 7]
    assert clip((1.0, 2.0)).thinned(4).seconds == (1, 2)
