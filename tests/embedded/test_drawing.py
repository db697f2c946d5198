"""Shapes and characters of both hands: none looks like another, and each fills what it is said to."""

import pytest

from foveate.embedded.drawing import FONTS, SHAPES, font, glyph, shape_mask
from foveate.embedded.scenes import CHARACTERS


def test_no_two_characters_and_no_two_shapes_look_the_same():
    drawn = {glyph(c, 24).tobytes() for c in CHARACTERS}
    assert len(drawn) == len(CHARACTERS) == 36
    assert len({shape_mask(s, 24).tobytes() for s in SHAPES}) == len(SHAPES) == 8


@pytest.mark.parametrize("name", FONTS)
def test_every_font_is_there_and_draws_every_character(name):
    assert len(FONTS) >= 3
    face = font(name, 40)
    assert len({bytes(face.getmask(character)) for character in CHARACTERS}) == len(CHARACTERS)
    assert all(face.getlength(character) > 8 for character in CHARACTERS)
