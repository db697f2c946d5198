"""What encodes pictures is timed once a call, and is as it was afterwards."""

from itertools import count

import pytest
import torch
from torch import nn

from foveate.bench.stopwatch import Stopwatch


class Core:
    """Makes a video's features with its images' function, as some models do."""

    def get_image_features(self, pixels):
        if pixels is None:
            raise ValueError("no pixels")
        return pixels

    def get_video_features(self, pixels):
        return self.get_image_features(pixels)


@pytest.fixture
def watch():
    """A stopwatch whose clock ticks once a look."""
    return Stopwatch(torch.device("cpu"), count().__next__)


def test_a_call_inside_a_call_does_not_count(watch):
    core = Core()
    with watch.watching(core, nn.Identity()):
        assert core.get_video_features(3) == 3
    core.get_image_features(1)
    assert vars(core) == {}
    assert watch.parts() == {"tower": 1}


def test_of_the_decoder_only_the_first_forward_counts(watch):
    text = nn.Identity()
    with watch.watching(Core(), text):
        text(1)
        text(2)
    assert watch.parts() == {"prefill": 1}
    assert not text._forward_pre_hooks
    assert not text._forward_hooks
