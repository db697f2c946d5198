"""Uploads: what is taken, what is scaled down, and what is said of bad files; and the examples with their questions."""

import numpy as np
import pytest
from PIL import Image

from foveate import embedded
from foveate.app import subjects
from foveate.app.subjects import examples, read_upload
from foveate.ask.media import read_picture
from foveate.errors import InputError


def test_a_picture_is_read_and_knows_its_name(picture):
    subject = read_upload(picture)
    assert subject.notes == ()
    assert np.array_equal(np.asarray(subject.medium.image), np.asarray(Image.open(picture)))
    assert str(subject.medium.path) == "a picture.png"


def test_a_large_picture_is_scaled_down_and_that_is_said(tmp_path, monkeypatch):
    path = tmp_path / "wide.png"
    Image.new("RGB", (400, 100), "red").save(path)
    monkeypatch.setattr(subjects, "SIDE", 400)
    assert read_upload(path).medium.image.size == (400, 100)
    monkeypatch.setattr(subjects, "SIDE", 200)
    subject = read_upload(path)
    assert subject.medium.image.size == (200, 50)
    assert subject.notes == ("wide.png has 400 x 100 pixels; the model sees 200 x 50.",)


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("text.png", b"no picture at all", "not a picture that Pillow can read"),
        ("empty.jpg", b"", "is empty"),
        ("film.mp4", b"no film at all" * 50, "film.mp4"),
        ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS"),
        ("cut.png", None, "cut.png"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_without_the_servers_folder(tmp_path, picture, name, contents, words):
    path = tmp_path / name
    path.write_bytes(picture.read_bytes()[:300] if contents is None else contents)
    with pytest.raises(InputError, match=words) as caught:
        read_upload(path)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_first_is_the_picture_that_ships_with_its_question():
    first = examples()[0]
    assert np.array_equal(np.asarray(first.pictures[0]), np.asarray(read_picture(embedded.picture()).image))
    assert next(iter(first.questions.items())) == (embedded.QUESTION, embedded.ANSWER)


def test_all_differ_and_have_questions():
    assert len(examples()) >= 6
    assert len({one.pictures[0].tobytes() for one in examples()}) == len(examples())
    for one in examples():
        assert len(one.questions) >= 2
        assert all(question and right for question, right in one.questions.items())
