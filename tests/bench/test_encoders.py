"""A context around what encodes pictures: once a call, and gone afterwards."""

from contextlib import contextmanager

import pytest

from foveate.bench.encoders import around_encoders


class Core:
    """Makes a video's features with its images' function, as some models do."""

    def get_image_features(self, pixels):
        if pixels is None:
            raise ValueError("no pixels")
        return pixels

    def get_video_features(self, pixels):
        return self.get_image_features(pixels)


class Log:
    """Notes when its context begins and ends."""

    def __init__(self):
        self.entries = []

    @contextmanager
    def __call__(self):
        self.entries.append("begin")
        try:
            yield
        finally:
            self.entries.append("end")


def test_a_call_inside_a_call_does_not_count():
    core, log = Core(), Log()
    with around_encoders(core, log):
        assert core.get_video_features(3) == 3
    assert log.entries == ["begin", "end"]


def test_calls_one_after_the_other_count_each_also_after_one_that_failed():
    core, log = Core(), Log()
    with around_encoders(core, log):
        with pytest.raises(ValueError, match="no pixels"):
            core.get_image_features(None)
        core.get_image_features(1)
    assert log.entries == ["begin", "end"] * 2


def test_the_core_is_as_it_was_afterwards():
    core, log = Core(), Log()
    with around_encoders(core, log):
        assert vars(core)
    core.get_image_features(1)
    assert vars(core) == {}
    assert log.entries == []
