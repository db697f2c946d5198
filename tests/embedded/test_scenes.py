"""The generator: same scene twice, splits apart, nothing overlaps, everything is where it is said to be."""

import numpy as np
import pytest

from foveate.embedded.drawing import COLOURS, SHAPES, glyph, glyph_advance, shape_mask
from foveate.embedded.scenes import CHARACTERS, PATCH, SPLITS, rng_for, scene


@pytest.mark.parametrize("side", [84, 168, 336])
@pytest.mark.parametrize("dense", [False, True])
def test_the_same_split_and_index_give_the_same_scene(side, dense):
    one, two = scene("train", 11, side, dense), scene("train", 11, side, dense)
    assert one.image.shape == (side, side, 3)
    assert one.image.dtype == np.uint8
    np.testing.assert_array_equal(one.image, two.image)
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


def test_an_unknown_split_is_refused():
    with pytest.raises(KeyError):
        scene("test", 0)


def test_a_side_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="side is 100; it must be a multiple of 14"):
        scene("train", 0, 100)


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


def test_sizes_and_numbers_are_as_described():
    scenes = [scene("held-out", index) for index in range(120)]
    assert all(1 <= len(s.things) <= 8 for s in scenes)
    assert all(16 <= t.size <= 46 for s in scenes for t in s.things)
    even = [s for s in scenes if len(np.unique(s.image[:3, :3].reshape(-1, 3), axis=0)) <= 2]
    assert 0.1 < len(even) / len(scenes) < 0.3  # plain grounds without grain
    assert all(2 <= len(t.characters) <= 5 for s in scenes for t in s.texts)
    assert 0.6 < np.mean([len(s.texts) for s in scenes]) < 0.9
    assert all(len({t.name for t in s.things}) == len(s.things) for s in scenes)


def test_each_character_is_wider_than_a_patch_and_drawn_inside_its_cell():
    for character in CHARACTERS:
        assert glyph_advance(character, 20) > PATCH
        mask = glyph(character, 20)
        assert mask[:, 0].max() < 0.5
        assert mask[:, -1].max() < 0.5
        assert mask.max() > 0.9


def test_no_two_characters_and_no_two_shapes_look_the_same():
    drawn = {glyph(c, 24).tobytes() for c in CHARACTERS}
    assert len(drawn) == len(CHARACTERS) == 36
    assert len({shape_mask(s, 24).tobytes() for s in SHAPES}) == len(SHAPES) == 8


def test_an_unknown_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="No shape is called 'blob'"):
        shape_mask("blob", 20)


def test_on_a_light_ground_nothing_is_white_and_text_stands_out():
    plain_ones = 0
    for index in range(200):
        one = scene("held-out", index)
        corner = one.image[:4, :4].astype(float)
        if corner.std(axis=(0, 1)).max() > 4 or (one.owner[:4, :4] != 0).any():
            continue
        tone = corner.mean()
        if tone > 170:
            plain_ones += 1
            assert "white" not in {thing.colour for thing in one.things}
        if one.texts and (tone > 170 or tone < 50):
            ink = one.image[one.owner > len(one.things)].astype(float).mean()
            assert abs(ink - tone) > 100
    assert plain_ones > 10
