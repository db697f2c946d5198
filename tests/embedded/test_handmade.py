"""The examination by hand-drawn pictures: its size, its words, and its table."""

import re
from collections import Counter

import pytest
from PIL import Image

from handmade import HERE, PICTURES, QUESTIONS, table

# The words of the model card, section "What it can be asked".
COLOUR = "(?:red|green|blue|yellow|purple|orange|cyan|white)"
SHAPE = "(?:circle|square|triangle|diamond|cross|star|ring|moon)"
SHAPES = "(?:circles|squares|triangles|diamonds|crosses|stars|rings|moons)"
OBJECT = f"{COLOUR} {SHAPE}"
LIST = f"{OBJECT}(?:, {OBJECT})*"

# Each question's words and the words of its answer. "an orange star" is not in the card, so it is not asked for.
TEMPLATES = {
    f"What colour is the {SHAPE}[?]": COLOUR,
    f"What shape is the {COLOUR} object[?]": SHAPE,
    f"How many (?:objects|{SHAPES}|{COLOUR} objects) are there[?]": "[1-9]",
    f"Is there a (?!orange){OBJECT}[?]": "yes|no",
    f"Where is the (?:{OBJECT}|text)[?]": "(?:top|bottom) (?:left|right)",
    f"What is just (?:left of|right of|above|below) the {OBJECT}[?]": OBJECT,
    "What does the text say[?]": "[A-Z0-9]{1,5}",
    "What is the (?:first|second|third|fourth|fifth) character[?]": "[A-Z0-9]",
    "List the objects from (?:left to right|top to bottom)[.]": LIST,
}


def count(group: str) -> int:
    return Counter(question.group for question in QUESTIONS)[group]


def test_the_examination_is_large_enough():
    assert len(QUESTIONS) >= 200
    assert len(set(QUESTIONS)) == len(QUESTIONS)
    assert count("equal objects") >= 50
    assert count("mixed objects") >= 55
    assert count("text of three letters") >= 24
    assert sum(question.group.startswith("text of") for question in QUESTIONS) >= 60
    for group in ("plates", "outlines", "big shapes", "other formats", "photo-like grounds"):
        assert count(group) >= 8


def test_every_picture_has_a_question():
    assert {question.picture for question in QUESTIONS} == {path.stem for path in HERE.glob("*.png")}


@pytest.mark.parametrize("path", PICTURES.values(), ids=lambda path: path.stem)
def test_a_picture_is_rgb_and_shows_something(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert min(image.size) >= 224
        assert max(image.size) <= 1200
        assert len(image.getcolors(maxcolors=1200 * 1200)) > 1


def test_questions_and_answers_are_in_the_words_of_the_model_card():
    for question in QUESTIONS:
        fitting = [answer for words, answer in TEMPLATES.items() if re.fullmatch(words, question.question)]
        assert len(fitting) == 1, question
        assert re.fullmatch(fitting[0], question.answer), question


def test_characters_agree_with_the_text():
    ordinals = ("first", "second", "third", "fourth", "fifth")
    texts = {each.picture: each.answer for each in QUESTIONS if each.question == "What does the text say?"}
    for question in QUESTIONS:
        match = re.fullmatch(r"What is the (\w+) character\?", question.question)
        if match:
            assert texts[question.picture][ordinals.index(match[1])] == question.answer


def test_the_table_adds_up():
    marks = [question.group == "plates" for question in QUESTIONS]
    rows = table(marks)
    assert rows["plates"]["accuracy"] == 1.0
    assert rows["outlines"]["right"] == 0
    assert rows["all"] | {"low": 0, "high": 0} == {
        "n": len(QUESTIONS),
        "right": count("plates"),
        "accuracy": round(count("plates") / len(QUESTIONS), 4),
        "low": 0,
        "high": 0,
    }
