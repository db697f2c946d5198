"""The examples: each can be asked about, and its questions have their right answers."""

import numpy as np

from foveate import embedded
from foveate.app.examples import examples, generated
from foveate.ask.pictures import load_picture
from foveate.video import Clip


def test_the_first_is_the_picture_that_ships_with_its_question():
    first = examples()[0]
    assert np.array_equal(np.asarray(first.pictures[0]), np.asarray(load_picture(embedded.picture()).image))
    assert first.questions[0] == (embedded.QUESTION, embedded.ANSWER)
    assert first.right_answer(f" {embedded.QUESTION} ") == embedded.ANSWER
    assert first.right_answer("Who?") is None


def test_all_differ_and_have_questions():
    assert len({one.key for one in examples()}) == len(examples()) >= 6
    assert len({one.pictures[0].tobytes() for one in examples()}) == len(examples())
    for one in examples():
        assert len(one.questions) >= 2
        assert all(question and right for question, right in one.questions)


def test_one_is_a_film():
    (film,) = [one for one in examples() if isinstance(one.medium, Clip)]
    assert len(film.pictures) == len(film.medium.seconds) == 8


def test_generated_pictures_are_the_same_every_time_and_all_differ():
    pictures = [one.image.tobytes() for one in generated(6)]
    assert pictures == [one.image.tobytes() for one in generated(6)]
    assert len(set(pictures)) == 6
    assert len(generated(1)) == 1
