"""What the page shows of answers: numbers that are the answer's, escaped text, and the right picture at every stop."""

from dataclasses import replace

import pytest
from PIL import Image

from foveate.app.kept import way_of
from foveate.app.replies import FULL, Said, ask, cards
from foveate.app.subjects import read_upload
from tests.app.conftest import asking

QUESTION = "What is this ?"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def replies(vlm, tmp_path_factory):
    path = tmp_path_factory.mktemp("cards") / "p.png"
    Image.effect_mandelbrot((84, 84), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    subject = read_upload(path)
    names = (FULL, "v2drop", "averagepool")
    return subject, [list(ask(vlm, subject, QUESTION, name, asking(name, 0.4, 3)))[-1] for name in names]


def test_a_card_says_what_the_answer_took(replies):
    _, (full, v2drop, pooled) = replies
    page = cards([full, v2drop, pooled], "seven")
    assert page.count("<article") == 3
    assert "36 of 36 (100%)" in page
    for reply in (v2drop, pooled):
        said = reply.answer
        assert f"{said.spent:.0f} of 36 ({said.retention:.0%})" in page
        assert f"({said.flops / full.answer.flops:.0%})" in page
        assert f"({said.kv_bytes / said.kv_bytes_whole:.0%})" in page
        assert f"{reply.seconds:.2f} s in total" in page
    assert "The right answer is <b>seven</b>" in page


def test_a_card_says_in_words_whether_its_answer_is_right(replies):
    _, (full, v2drop, _) = replies
    answers = [replace(full, text="Seven."), replace(v2drop, text="eight"), Said("random", error="no budget")]
    told = cards(answers, "seven").split("<article")[1:]
    assert ["right</p>" in told[0], "wrong</p>" in told[1], "</p>" in told[2]] == [True] * 3
    assert ["wrong" in told[0], "right</p>" in told[1], "wrong" in told[2]] == [False] * 3
    assert "wrong" not in cards(answers)  # nobody knows


def test_an_answer_on_its_way_and_an_error_are_told_apart():
    page = cards([Said(FULL, "a wo"), Said("v2drop", error="no budget"), Said("random")])
    assert page.count("fv-waiting") == 2
    assert "a wo" in page
    assert "role='alert'>no budget" in page
    assert "right answer" not in page


def test_nothing_that_is_shown_is_read_as_html(vlm, replies):
    subject, answers = replies
    page = cards([Said(EVIL, EVIL), Said(EVIL, error=EVIL)], EVIL)
    way = way_of(subject, [answers[0], Said(EVIL, answer=answers[1].answer)]).to_html()
    for shown in (page, way):
        assert "<script" not in shown
    assert "&lt;script&gt;" in way
