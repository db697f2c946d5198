"""What the two tabs answer to their events, and what they show at the beginning, without a browser."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from foveate.app.answers import FULL, MOST
from foveate.app.kept import stops_of
from foveate.app.subjects import examples
from tests.app.serving import HAS_GRADIO

pytestmark = pytest.mark.skipif(not HAS_GRADIO, reason="THE TABS ARE NOT TESTED: no Gradio; see make setup-page")

QUESTION = "What is this ?"
NAMES = ["v2drop", "random"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from foveate.app import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield page


@pytest.fixture(scope="module")
def tab(page, vlm):
    return asyncio.run(laid_out(page, lambda: page.AskTab(vlm, 3)))


@pytest.fixture(scope="module")
def looking(page, vlm):
    return asyncio.run(laid_out(page, lambda: page.LookTab(vlm)))


async def laid_out(page, make):
    """Outside of a loop, Gradio would begin some and leave them open."""
    with page.gr.Blocks():
        return make()


def alerts(words):
    return f"role='alert'>{words}"


def test_at_the_beginning_there_is_an_example_with_its_questions_and_nothing_to_share(tab):
    first = examples()[0]
    assert tab.subject.value.questions == first.questions
    assert [row[0] for row in tab.proposed.raw_samples] == list(first.questions)
    assert tab.question.value == next(iter(first.questions))
    assert (tab.gallery.selected_index, tab.gallery.columns, len(tab.gallery.value)) == (0, *2 * [len(examples())])
    fixed = [tab.gallery.interactive, tab.gallery.allow_preview, tab.code.interactive, tab.code.show_label]
    hidden = [part.visible for part in (tab.slider, tab.share, tab.python, tab.notice, tab.dropping.refusal)]
    assert fixed + hidden + [tab.python.open] == [False] * 10
    assert tab.kept.value == stops_of(first)[0].panels
    assert (tab.file.file_types, tab.dropping.percent.maximum, tab.dropping.percent.value) == (
        ["image", "video"],
        100,
        33,
    )


def test_an_upload_is_shown_and_a_bad_one_empties_the_box(tab, picture, tmp_path):
    reading, shown = tab.upload(str(picture), NAMES, 33)
    assert "The file is being read." in reading[tab.notice].value
    assert reading[tab.subject] is None
    assert [reading[part] for part in (tab.answers, tab.kept)] == ["", ""]
    hidden = [reading[part].visible for part in (tab.slider, tab.share, tab.python, tab.proposed)]
    assert [*hidden, reading[tab.ask].interactive] == [False] * 5
    assert reading[tab.gallery].selected_index is None
    subject = shown[tab.subject]
    assert str(subject.medium.path) == picture.name
    assert shown[tab.kept] == shown[tab.stops][0].panels == stops_of(subject)[0].panels
    assert [shown[tab.ask].interactive, shown[tab.notice].visible, shown[tab.proposed].visible] == [True, False, False]
    assert "Press Ask" in shown[tab.answers]

    (bad := tmp_path / "broken.png").write_bytes(b"none")
    _, refused = tab.upload(str(bad), NAMES, 33)
    assert set(refused) == {tab.notice, tab.file}
    assert refused[tab.notice].visible
    assert alerts("broken.png") in refused[tab.notice].value
    assert refused[tab.file] is None


def test_an_example_brings_its_questions_and_empties_the_box(tab):
    chosen = tab.choose(NAMES, 33, SimpleNamespace(index=2))
    subject = examples()[2]
    assert chosen[tab.subject] is subject
    assert chosen[tab.gallery].selected_index == 2
    assert [row[0] for row in chosen[tab.proposed].raw_samples] == list(subject.questions)
    assert chosen[tab.proposed].visible
    assert (chosen[tab.question], chosen[tab.file]) == (next(iter(subject.questions)), None)


def test_answers_come_beside_one_another_and_end_with_all_that_can_be_taken_along(tab, vlm):
    subject = examples()[1]
    question, right = next(iter(subject.questions.items()))
    begun, *growing, last = tab.reply(subject, f" {question} ", NAMES, 40)
    assert begun[tab.answers].count("fv-waiting") == 1 + len(NAMES)
    assert begun[tab.share].visible is False
    assert all(set(step) == {tab.answers} for step in growing)
    assert growing[-1][tab.answers].count("<dl>") == 1 + len(NAMES)
    assert f"The right answer is <b>{right}</b>." in last[tab.answers]
    stops = last[tab.stops]
    middle = len(stops) // 2
    assert last[tab.kept] == stops[middle].panels != stops[-1].panels
    slider = last[tab.slider]
    assert (slider.value, slider.maximum, slider.label, slider.visible) == (
        middle, len(stops) - 1, stops[middle].words, True
    )  # fmt: skip
    panels, named = tab.stand_at(stops, 1.0)
    assert (panels, named.label) == (stops[1].panels, stops[1].words)
    assert last[tab.share].visible
    shared = Path(last[tab.share].value["path"])
    with Image.open(shared) as picture:
        assert (shared.name, picture.width > 400) == ("foveate.png", True)
    assert last[tab.python].visible
    for words in (repr(question), "examples()[1]", repr(NAMES), "retention=0.4", "max_new_tokens=3", repr(vlm.name)):
        assert words in last[tab.code], words


def test_where_nothing_is_dropped_there_is_no_slider_and_nothing_to_share(tab, subject):
    *_, last = tab.reply(subject, QUESTION, [], 40)
    assert [last[tab.slider].visible, last[tab.share].visible] == [False, False]
    assert FULL in last[tab.answers]


def test_without_a_picture_or_a_question_nothing_is_asked(tab, subject):
    for shown, question, words in ((None, QUESTION, "There is no picture"), (subject, "  ", "What is the question?")):
        (said,) = tab.reply(shown, question, NAMES, 40)
        assert set(said) == {tab.answers}
        assert alerts(words) in said[tab.answers]


def test_the_slider_begins_where_all_methods_can_be(tab, subject):
    changed = tab.dropping.changes(subject, ["random:layers=0"], 3)
    slider = changed[tab.dropping.percent]
    assert (slider.minimum, slider.value) == (3, 3)  # one of 36 tokens
    slider = tab.dropping.changes(subject, [], 3)[tab.dropping.percent]
    assert (slider.minimum, slider.value, slider.info) == (1, 3, "Mean over the decoder's layers.")
    slider = tab.dropping.changes(None, ["v2drop"], 3)[tab.dropping.percent]
    assert slider.minimum == slider.value > 3
    assert f"need {slider.minimum} % at the least" in slider.info
    assert changed[tab.dropping.refusal].visible is False
    refused = tab.dropping.changes(subject, list(map(str, range(MOST + 1))), 3)
    assert set(refused) == {tab.dropping.refusal}
    assert refused[tab.dropping.refusal].visible
    assert alerts(f"At most {MOST} methods") in refused[tab.dropping.refusal].value


def test_maps_fill_from_pictures_of_ones_own_or_generated_ones(page, looking, picture):
    begun, first = looking.run(NAMES, 40, 12, [str(picture)], QUESTION)
    assert begun == page.hint("Showing the first of 1 pictures.")
    assert "Mean over 1 pictures" in first
    begun, first, second = looking.run(NAMES, 40, 2.0, None, f" {QUESTION} ")
    assert "Mean over 1 of 2 pictures" in first
    assert "Mean over 2 pictures" in second
    (refused,) = looking.run([], 40, 2, None, QUESTION)
    assert alerts("Choose a method.") in refused
