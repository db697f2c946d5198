"""Films: what they show can be seen in their frames."""

import numpy as np

from foveate.embedded.films import FRAMES, film
from foveate.embedded.scenes import Lettering


def test_the_same_film_twice_and_frames_of_one_size():
    for index in range(4):
        one, two = film("train", index), film("train", index)
        assert len(one.frames) == FRAMES
        for a, b in zip(one.frames, two.frames, strict=True):
            assert a.image.shape == (168, 168, 3)
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.owner, b.owner)


def test_things_do_not_show_before_they_come_nor_after_they_went(films):
    for one in films:
        for each in one.shown:
            assert 0 <= each.start < each.stop <= len(one.frames)
            for number, frame in enumerate(one.frames):
                shows = each.what in (frame.texts if isinstance(each.what, Lettering) else frame.things)
                assert shows == (each.start <= number < each.stop)
