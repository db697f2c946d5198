"""Scenes and sketches: same one twice, splits apart, nothing overlaps, everything is where it is said to be."""

from collections import Counter

import numpy as np
import pytest

from foveate.embedded.drawing import COLOURS, MEANT, glyph_advance
from foveate.embedded.scenes import PAD, SPLITS, Scene, rng_for, scene, sketch

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


def test_an_unknown_split_is_refused():
    with pytest.raises(KeyError):
        scene("test", 0)


@pytest.mark.parametrize("draw", [scene, sketch])
def test_a_side_that_is_no_multiple_of_the_patch_is_refused(draw):
    with pytest.raises(ValueError, match="side is 100; it must be a multiple of 14"):
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


def test_sizes_and_numbers_are_as_described():
    scenes = [scene("held-out", index) for index in range(120)]
    assert all(1 <= len(s.things) <= 8 for s in scenes)
    assert all(16 <= t.size <= 46 for s in scenes for t in s.things)
    even = [s for s in scenes if len(np.unique(s.image[:3, :3].reshape(-1, 3), axis=0)) <= 2]
    assert 0.1 < len(even) / len(scenes) < 0.3  # plain grounds without grain
    assert all(2 <= len(t.characters) <= 5 for s in scenes for t in s.texts)
    assert 0.6 < np.mean([len(s.texts) for s in scenes]) < 0.9
    assert all(len({t.name for t in s.things}) == len(s.things) for s in scenes)


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


def test_no_two_sketches_are_alike_and_none_is_in_another_split(sketches):
    everything = [one for one in (*sketches, *(sketch("train", index) for index in SKETCHES)) if one.owner.any()]
    assert len(everything) > 1.9 * len(SKETCHES)  # hardly any is empty, for want of room
    assert len({one.image.tobytes() for one in everything}) == len(everything)


def test_each_thing_and_character_of_a_sketch_owns_pixels_and_nothing_else_does(sketches):
    for one in sketches:
        marks = len(one.things) + sum(len(text.characters) for text in one.texts)
        assert set(np.unique(one.owner)) - {0} == set(range(1, marks + 1))


def test_things_of_a_sketch_stand_where_they_are_said_to_and_apart(sketches):
    for one in sketches:
        for number, thing in enumerate(one.things, start=1):
            rows, columns = np.nonzero(one.owner == number)
            assert abs((rows.min() + rows.max() + 1) / 2 - thing.y) <= 0.15 * thing.size + 2
            assert np.ptp(columns) <= thing.size + 2
            assert np.ptp(rows) >= 0.7 * thing.size - 2
        for i, a in enumerate(one.things):
            for b in one.things[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2


def test_characters_of_a_sketch_stand_in_reading_order(sketches):
    for one in sketches:
        for text in one.texts:
            centres = [
                np.nonzero(one.owner == len(one.things) + place)[1].mean()
                for place in range(1, 1 + len(text.characters))
            ]
            assert centres == sorted(centres)
            assert all(abs(a - b) <= text.size / 2 for a, b in zip(centres, text.xs, strict=True))


def test_filled_things_of_a_sketch_have_their_colours(sketches):
    names = [(name, rgb) for name, meant in MEANT.items() for rgb in meant]
    checked = 0
    for one in sketches:
        for number, thing in enumerate(one.things, start=1):
            own = one.image[one.owner == number].astype(float)
            if len(own) < 0.3 * thing.size**2 or thing.size < 24:
                continue  # an outline, a ring, or too small to have an inside
            checked += 1
            far = np.stack([np.abs(own - np.array(rgb)).sum(axis=1) for _, rgb in names])
            near = far.argmin(axis=0)[far.min(axis=0) < 75]  # a dark border is near to none
            assert names[np.bincount(near).argmax()][0] == thing.colour
    assert checked > 60


def test_there_are_equal_things_text_alone_and_wide_and_tall_sketches():
    drawn = [sketch("train", index) for index in range(300)]
    counts = Counter(len(one.things) for one in drawn if len({thing.name for thing in one.things}) == 1)
    assert set(range(1, 9)) <= set(counts)
    assert {len(one.texts[0].characters) for one in drawn if one.texts} == {1, 2, 3, 4, 5}
    assert 0.1 < np.mean([bool(one.texts) and not one.things for one in drawn]) < 0.4
    assert max(thing.size for one in drawn for thing in one.things) > 120
    assert max(text.size for one in drawn for text in one.texts) > 80
    bars = [(one.image[:, 0] == PAD).all() or (one.image[0] == PAD).all() for one in drawn]
    assert 0.2 < np.mean(bars) < 0.6
