"""Sketches: same one twice, equal things, nothing overlaps, everything is where and what it is said to be."""

import re
from collections import Counter

import numpy as np
import pytest

from foveate.embedded.drawing import SHAPES
from foveate.embedded.questions import all_questions
from foveate.embedded.scenes import CHARACTERS, Scene, rng_for, scene
from foveate.embedded.sketches import MEANT, PAD, sketch
from foveate.embedded.strokes import FONTS, advances, font

SINGULAR = {f"{s}es" if s == "cross" else f"{s}s": s for s in SHAPES}
SKETCHES = range(60)


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [sketch("held-out", index) for index in SKETCHES]


@pytest.mark.parametrize("side", [84, 168, 336])
def test_the_same_split_and_index_give_the_same_sketch(side):
    for index in range(8):
        one, two = sketch("train", index, side), sketch("train", index, side)
        assert (one.image.shape, one.image.dtype) == ((side, side, 3), np.uint8)
        np.testing.assert_array_equal(one.image, two.image)
        np.testing.assert_array_equal(one.owner, two.owner)
        assert (one.things, one.texts) == (two.things, two.texts)


def test_no_two_are_alike_and_none_is_in_another_split(drawn):
    everything = [one for one in (*drawn, *(sketch("train", index) for index in SKETCHES)) if one.owner.any()]
    assert len(everything) > 1.9 * len(SKETCHES)  # hardly any is empty, for want of room
    assert len({one.image.tobytes() for one in everything}) == len(everything)


def test_a_side_that_is_no_multiple_of_the_patch_is_refused():
    with pytest.raises(ValueError, match="side is 100; it must be a multiple of 14"):
        sketch("train", 0, 100)


def test_each_thing_and_character_owns_pixels_and_nothing_else_does(drawn):
    for one in drawn:
        marks = len(one.things) + sum(len(text.characters) for text in one.texts)
        assert set(np.unique(one.owner)) - {0} == set(range(1, marks + 1))


def test_things_stand_where_they_are_said_to_and_apart(drawn):
    for one in drawn:
        for number, thing in enumerate(one.things, start=1):
            rows, columns = np.nonzero(one.owner == number)
            assert abs((rows.min() + rows.max() + 1) / 2 - thing.y) <= 0.15 * thing.size + 2
            assert np.ptp(columns) <= thing.size + 2
            assert np.ptp(rows) >= 0.7 * thing.size - 2
        for i, a in enumerate(one.things):
            for b in one.things[:i]:
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2


def test_characters_stand_in_reading_order(drawn):
    for one in drawn:
        for text in one.texts:
            centres = [
                np.nonzero(one.owner == len(one.things) + place)[1].mean()
                for place in range(1, 1 + len(text.characters))
            ]
            assert centres == sorted(centres)
            assert all(abs(a - b) <= text.size / 2 for a, b in zip(centres, text.xs, strict=True))


def test_filled_things_have_their_colours(drawn):
    names = [(name, rgb) for name, meant in MEANT.items() for rgb in meant]
    checked = 0
    for one in drawn:
        for number, thing in enumerate(one.things, start=1):
            own = one.image[one.owner == number].astype(float)
            if len(own) < 0.3 * thing.size**2 or thing.size < 24:
                continue  # an outline, a ring, or too small to have an inside
            checked += 1
            far = np.stack([np.abs(own - np.array(rgb)).sum(axis=1) for _, rgb in names])
            near = far.argmin(axis=0)[far.min(axis=0) < 75]  # a dark border is near to none
            assert names[np.bincount(near).argmax()][0] == thing.colour
    assert checked > 60


def test_counts_are_what_can_be_counted(drawn):
    for index, one in zip(SKETCHES, drawn, strict=True):
        seen = [thing for number, thing in enumerate(one.things, start=1) if (one.owner == number).any()]
        for question in all_questions(one, rng_for("held-out", index, 1))["count"]:
            if question.question == "How many objects are there?":
                right = len(seen)
            elif found := re.fullmatch(r"How many (\w+) objects are there\?", question.question):
                right = sum(thing.colour == found[1] for thing in seen)
            else:
                right = sum(thing.shape == SINGULAR[question.question.split()[2]] for thing in seen)
            assert question.answer == str(right)


def test_what_is_asked_of_one_thing_names_that_one_alone():
    for index in range(200):
        one = sketch("train", index)
        names = Counter(thing.name for thing in one.things)
        found = all_questions(one, rng_for("train", index, 1))
        for task, pattern in (
            ("quadrant", r"Where is the (.*)\?"),
            ("relation", r"What is just .*?(?:of|above|below) the (.*)\?"),
        ):
            for question in found.get(task, []):
                name = re.fullmatch(pattern, question.question)[1]
                assert names[name] == 1
        yes = {q.question for q in found.get("existence", []) if q.answer == "yes"}
        assert len(yes) == len(names)


def test_there_are_equal_things_text_alone_and_wide_and_tall_pictures():
    drawn = [sketch("train", index) for index in range(300)]
    counts = Counter(len(one.things) for one in drawn if len({thing.name for thing in one.things}) == 1)
    assert set(range(1, 9)) <= set(counts)
    assert {len(one.texts[0].characters) for one in drawn if one.texts} == {1, 2, 3, 4, 5}
    assert 0.1 < np.mean([bool(one.texts) and not one.things for one in drawn]) < 0.4
    assert max(thing.size for one in drawn for thing in one.things) > 120
    assert max(text.size for one in drawn for text in one.texts) > 80
    bars = [(one.image[:, 0] == PAD).all() or (one.image[0] == PAD).all() for one in drawn]
    assert 0.2 < np.mean(bars) < 0.6


def test_a_scene_asks_for_no_absent_things_and_a_sketch_does():
    def zeros(one, index):
        return [q for q in all_questions(one, rng_for("train", index, 1)).get("count", []) if q.answer == "0"]

    assert not any(zeros(scene("train", index), index) for index in range(60))
    asked = [question for index in range(60) for question in zeros(sketch("train", index), index)]
    assert any(question.question != "How many objects are there?" for question in asked)


@pytest.mark.parametrize("name", FONTS)
def test_every_font_is_there_and_draws_every_character(name):
    assert len(FONTS) >= 3
    shapes = {bytes(font(name, 40).getmask(character)) for character in CHARACTERS}
    assert len(shapes) == len(CHARACTERS)
    assert all(step > 8 for step in advances(CHARACTERS, name, 40))
