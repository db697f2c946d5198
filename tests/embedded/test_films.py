"""Films: what is asked of them can be seen in their frames."""

import numpy as np
import pytest

from foveate.embedded.films import BRIEF, FILM_TASKS, FRAMES, film, film_questions
from foveate.embedded.scenes import Text, rng_for


@pytest.fixture(scope="module")
def drawn():
    return [film("held-out", index) for index in range(80)]


def seen(one) -> dict[str, list[int]]:
    """The frames in which each thing owns pixels."""
    found: dict[str, list[int]] = {}
    for number, frame in enumerate(one.frames):
        for place, thing in enumerate(frame.things, start=1):
            if (frame.owner == place).sum() > 4:
                found.setdefault(thing.name, []).append(number)
    return found


def test_the_same_film_twice_and_frames_of_one_size():
    for index in range(4):
        one, two = film("train", index), film("train", index)
        assert len(one.frames) == FRAMES
        for a, b in zip(one.frames, two.frames, strict=True):
            assert a.image.shape == (168, 168, 3)
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.owner, b.owner)


@pytest.mark.parametrize("frames", [4, 5, 8])
def test_a_film_has_as_many_frames_as_asked_for(frames):
    one = film("train", 3, frames)
    assert len(one.frames) == frames
    assert all(0 <= each.start < each.stop <= frames for each in one.shown)


def test_answers_are_what_the_frames_show(drawn):
    tasks = set()
    for index, one in enumerate(drawn):
        at = seen(one)
        for q in film_questions(one, rng_for("held-out", index, 1)):
            tasks.add(q.task)
            starts = {name: frames[0] for name, frames in at.items()}
            if q.task == "first":
                assert min(starts, key=starts.get) == q.answer
            elif q.task == "last":
                assert max(starts, key=starts.get) == q.answer
            elif q.task == "order":
                assert sorted(starts, key=starts.get) == q.answer.split(", ")
            elif q.task == "brief":
                assert min(at, key=lambda name: len(at[name])) == q.answer
                assert len(at[q.answer]) * BRIEF <= FRAMES
            elif q.task == "ever":
                assert (q.question.removesuffix(" appear?").split(" ", 2)[2] in at) == (q.answer == "yes")
            else:
                assert q.answer in {text.characters for frame in one.frames for text in frame.texts}
    assert tasks == set(FILM_TASKS)


def test_things_do_not_show_before_they_come_nor_after_they_went(drawn):
    for one in drawn:
        for each in one.shown:
            for number, frame in enumerate(one.frames):
                shows = each.what in (frame.texts if isinstance(each.what, Text) else frame.things)
                assert shows == (each.start <= number < each.stop)


def test_what_does_not_change_stays_the_same_from_frame_to_frame(drawn):
    for one in drawn[:20]:
        for a, b in zip(one.frames, one.frames[1:], strict=False):
            if (a.things, a.texts) == (b.things, b.texts):
                np.testing.assert_array_equal(a.image, b.image)
