"""Scenes and sketches: same one twice, splits apart, nothing overlaps, everything is where it is said to be."""

import numpy as np
import pytest

from foveate.embedded.drawing import COLOURS, glyph_advance
from foveate.embedded.scenes import SPLITS, Scene, rng_for, scene, sketch

SKETCHES = range(60)


@pytest.fixture(scope="module")
def sketches() -> list[Scene]:
    return [sketch("held-out", index) for index in SKETCHES]


@pytest.mark.parametrize("draw", [scene, sketch])
@pytest.mark.parametrize("side", [84, 168, 336])
@pytest.mark.parametrize("full", [False, True])
def test_the_same_split_and_index_give_the_same_picture(draw, side, full):
    for index in range(5, 13):
        one, two = draw("train", index, side, full), draw("train", index, side, full)
        assert (one.image.shape, one.image.dtype) == ((side, side, 3), np.uint8)
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.owner, two.owner)
        assert (one.things, one.texts) == (two.things, two.texts)


def test_no_two_scenes_of_any_splits_are_alike():
    pictures = {scene(split, index, 84).image.tobytes() for split in SPLITS for index in range(60)}
    assert len(pictures) == 60 * len(SPLITS)


def test_streams_differ_by_split_index_and_purpose():
    first = {
        int(rng_for(split, index, purpose).integers(2**62))
        for split in SPLITS
        for index in (0, 1, 2, 3, 10_000_000)
        for purpose in (0, 1)
    }
    assert len(first) == len(SPLITS) * 5 * 2
    assert len(set(SPLITS.values())) == len(SPLITS)


@pytest.mark.parametrize("draw", [scene, sketch])
def test_a_side_that_is_no_multiple_of_the_patch_is_refused(draw):
    with pytest.raises(ValueError, match="multiple"):
        draw("train", 0, 100)


@pytest.mark.parametrize("index", range(25))
def test_every_thing_has_its_colour_at_its_own_pixels(index):
    one = scene("held-out", index)
    for number, thing in enumerate(one.things, start=1):
        pixels = one.image[one.owner == number].astype(float)
        assert len(pixels) > 40
        distance = {name: np.abs(pixels.mean(0) - value).sum() for name, value in COLOURS.items()}
        assert min(distance, key=distance.get) == thing.colour
        rows, columns = np.nonzero(one.owner == number)
        assert abs(columns.mean() - thing.x) < thing.size / 2
        assert abs(rows.mean() - thing.y) < thing.size / 2


@pytest.mark.parametrize("index", range(25))
def test_things_and_texts_keep_apart(index):
    one = scene("held-out", index)
    boxes = [(t.x - t.size / 2, t.y - t.size / 2, t.x + t.size / 2, t.y + t.size / 2) for t in one.things]
    for text in one.texts:
        half = [glyph_advance(c, text.size) / 2 for c in text.characters]
        boxes.append((text.xs[0] - half[0], text.y - text.size / 2, text.xs[-1] + half[-1], text.y + text.size / 2))
    for i, a in enumerate(boxes):
        assert min(a) >= 0
        assert max(a) <= one.side
        for b in boxes[:i]:
            assert a[0] >= b[2] or a[2] <= b[0] or a[1] >= b[3] or a[3] <= b[1]


def test_each_thing_and_character_of_a_sketch_owns_pixels_and_nothing_else_does(sketches):
    for one in sketches:
        marks = len(one.things) + sum(len(text.characters) for text in one.texts)
        assert set(np.unique(one.owner)) - {0} == set(range(1, marks + 1))
