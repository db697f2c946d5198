"""Uploads: what is taken, what is scaled down, and what is said of bad files, without the server's folders."""

import numpy as np
import pytest
from PIL import Image

from foveate.app.limits import Limits, opened
from foveate.errors import InputError
from foveate.video import Clip
from tests.films import film


def test_a_picture_is_read_and_knows_its_name(picture):
    subject = opened(picture)
    assert subject.name == "a picture.png"
    assert subject.notes == ()
    assert np.array_equal(np.asarray(subject.medium.image), np.asarray(Image.open(picture)))
    assert str(subject.medium.path) == "a picture.png"


def test_the_same_contents_have_the_same_key_and_others_another(picture, tmp_path):
    again = tmp_path / "copy.png"
    again.write_bytes(picture.read_bytes())
    other = tmp_path / "other.png"
    Image.new("RGB", (9, 9)).save(other)
    assert opened(picture).key == opened(again).key != opened(other).key


def test_a_large_picture_is_scaled_down_and_that_is_said(tmp_path):
    path = tmp_path / "wide.png"
    Image.new("RGB", (400, 100), "red").save(path)
    subject = opened(path, Limits(side=200))
    assert subject.medium.image.size == (200, 50)
    assert subject.notes == ("wide.png has 400 x 100 pixels; the model sees 200 x 50.",)
    opened_whole = opened(path, Limits(side=400))
    assert opened_whole.medium.image.size == (400, 100)


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
        opened(path)
    assert str(tmp_path) not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path):
    path = tmp_path / "large.png"
    Image.new("L", (300, 200)).save(path)
    with pytest.raises(InputError, match=r"large.png has 300 x 200 pixels, and the page takes 0 million at most"):
        opened(path, Limits(pixels=59_999))
    opened(path, Limits(pixels=60_000))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("L", (300, 200)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="far more pixels"):
        opened(path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(b"\0" * 2_000_001)
    with pytest.raises(InputError, match="has 2 MB, and the page takes 2 MB at most"):
        opened(path, Limits(file=2_000_000))


def test_of_a_film_a_few_frames_are_read(tmp_path):
    path = tmp_path / "clip.mp4"
    film(path, 12, size=(64, 48))
    subject = opened(path, Limits(frames=4, side=32))
    assert isinstance(subject.medium, Clip)
    assert subject.medium.frames.shape == (4, 24, 32, 3)
    assert len(subject.pictures) == 4
    assert subject.notes[0] == "Of the film clip.mp4, 4 frames are read."
    assert str(tmp_path) not in " ".join(subject.notes)
