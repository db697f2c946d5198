"""Pictures that the embedded model cannot know are told from its own, also where those were saved and read again."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

import foveate as fv
from foveate import embedded
from foveate.embedded.films import film
from foveate.embedded.scenes import scene, sketch

OWN = {
    "scene": lambda number: scene("demo", number).image,
    "sketch": lambda number: sketch("demo", number).image,
    "small": lambda number: sketch("demo", number, side=84).image,
    "large": lambda number: sketch("demo", number, side=672).image,
    "film": lambda number: film("demo", number).frames[3].image,
}
PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def receipt(width, height):
    image = Image.new("RGB", (width, height), "white")
    for line in range(height // 13):
        ImageDraw.Draw(image).text(
            (6, 13 * line), f"{line} x croissant au beurre, 2.40 each: {2.4 * line:.2f}", "black"
        )
    return image


def photo(side=None):
    image = Image.open(PHOTO).convert("RGB")
    return image if side is None else image.crop((0, 0, 512, 512)).resize((side, side))


STRANGERS = {
    "photo": photo,
    "photo of the model's size": lambda: photo(336),
    "photo of a multiple of its patches": lambda: photo(448),
    "receipt": lambda: receipt(300, 700),
    "receipt of the model's size": lambda: receipt(336, 336),
    "noise": lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8)),
    "wide": lambda: Image.new("RGB", (640, 480), "white"),
    "huge": lambda: Image.new("RGB", (1400, 1400), "white"),
}


@pytest.mark.parametrize("kind", OWN)
def test_its_own_pictures_are_drawn_also_as_png_and_jpeg(kind):
    for number in range(12):
        image = Image.fromarray(OWN[kind](number))
        assert embedded.is_drawn(image)
        assert embedded.is_drawn(saved(image, "PNG"))
        assert embedded.is_drawn(saved(image, "JPEG", quality=(40, 75, 90, 95)[number % 4]))


def test_the_picture_that_ships_is_drawn():
    assert embedded.is_drawn(Image.open(embedded.picture()).convert("RGB"))


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_pictures_are_not(kind):
    assert not embedded.is_drawn(STRANGERS[kind]())


@pytest.mark.parametrize("name", embedded.NAMES)
def test_the_first_answer_about_another_picture_says_it_once(name, tmp_path):
    vlm = fv.load(name)
    own = Image.fromarray(scene("demo", 0, side=168).image)
    own.save(tmp_path / "own.jpg")
    assert vlm.ask(tmp_path / "own.jpg", "What does the text say?", max_new_tokens=1).notes == ()
    with pytest.warns(UserWarning, match="drawings"):
        answer = vlm.ask([own, photo()], "What does the text say?", max_new_tokens=1)
    assert answer.notes == (embedded.STRANGE,)
    assert vlm.ask(photo(), "What does the text say?", max_new_tokens=1).notes == ()


def test_another_model_says_nothing(tmp_path):
    model, processor = embedded.load()
    assert fv.VLM(model, processor, name="mine").prepare(photo(), "What is it?").notes == ()
