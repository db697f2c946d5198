"""What the page answers to its events, and what it shows at the beginning, without a browser."""

import asyncio
import re
from pathlib import Path

import pytest
from PIL import Image

from foveate.app.kept import way_of
from foveate.app.replies import FULL, MOST
from foveate.app.subjects import HALF, examples, read_upload
from tests.app.serving import HAS_GRADIO
from tests.films import film

pytestmark = pytest.mark.skipif(
    not HAS_GRADIO, reason="THE PAGE'S EVENTS ARE NOT TESTED: no Gradio; see make setup-page"
)

QUESTION = "What is this ?"
NAMES = ["v2drop", "random"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from foveate.app import page

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield page


@pytest.fixture(scope="module")
def asking(page, vlm):
    return asyncio.run(laid_out(page, lambda: page.AskPanel(vlm, 3)))


async def laid_out(page, make):
    """Outside of a loop, Gradio would begin some and leave them open."""
    with page.gr.Blocks():
        return make()


def alerts(words):
    return f"role='alert'>{words}"


def test_an_upload_is_shown_and_a_bad_one_empties_the_box(asking, picture, tmp_path):
    reading, shown = asking.upload(str(picture), NAMES, 33)
    assert "Reading the file" in reading[asking.notice].value
    assert reading[asking.subject] is None
    assert [reading[part] for part in (asking.answers, asking.kept)] == ["", ""]
    hidden = [reading[part].visible for part in (asking.slider, asking.share, asking.python, asking.proposed)]
    assert [*hidden, reading[asking.ask].interactive] == [False] * 5
    assert reading[asking.example] is None
    subject = shown[asking.subject]
    assert str(subject.medium.path) == picture.name
    assert shown[asking.kept] == way_of(subject).to_html()
    assert shown[asking.ask].interactive
    assert [shown[asking.notice].visible, shown[asking.proposed].visible] == [False, False]
    assert "Press Ask" in shown[asking.answers]

    (bad := tmp_path / "broken.png").write_bytes(b"none")
    _, refused = asking.upload(str(bad), NAMES, 33)
    assert set(refused) == {asking.notice, asking.file, asking.frames}
    assert refused[asking.notice].visible
    assert alerts("broken.png") in refused[asking.notice].value
    assert refused[asking.file] is None


@pytest.fixture
def clip(tmp_path):
    return film(tmp_path / "clip.mp4", 12, size=(64, 48))


def test_an_example_brings_its_questions_and_empties_the_box(asking):
    chosen = asking.choose(2, NAMES, 33)
    subject = examples()[2]
    assert chosen[asking.subject] is subject
    assert chosen[asking.example] == 2
    assert [row[0] for row in chosen[asking.proposed].raw_samples] == list(subject.questions)
    assert chosen[asking.proposed].visible
    assert (chosen[asking.question], chosen[asking.file]) == (next(iter(subject.questions)), None)


def test_answers_come_beside_one_another_and_end_with_all_that_can_be_taken_along(asking, vlm):
    subject = examples()[1]
    question, right = next(iter(subject.questions.items()))
    begun, *growing, last = asking.reply(subject, f" {question} ", NAMES, 40)
    assert begun[asking.answers].count("fv-waiting") == 1 + len(NAMES)
    assert begun[asking.share].visible is False
    assert all(set(step) == {asking.answers} for step in growing)
    assert growing[-1][asking.answers].count("<dl>") == 1 + len(NAMES)
    assert f"The right answer is <b>{right}</b>" in last[asking.answers]
    assert last[asking.answers].count("wrong</p>") == 1 + len(NAMES)  # of random weights
    slider = last[asking.slider]
    assert (slider.value, slider.visible) == ((slider.maximum + 1) // 2, True)
    places = re.findall(r"<p class='fv-panel' data-since='(\d+)'[^>]*?( hidden)?>", last[asking.kept])
    assert [int(place) for place, _ in places] == list(range(slider.maximum + 1))
    assert [int(place) for place, hidden in places if not hidden] == [slider.value]
    assert last[asking.share].visible
    shared = Path(last[asking.share].value["path"])
    with Image.open(shared) as picture:
        assert (shared.name, picture.width > 400) == ("foveate.png", True)
    assert last[asking.python].visible
    for words in (repr(question), "examples()[1]", repr(NAMES), "retention=0.4", "max_new_tokens=3", repr(vlm.name)):
        assert words in last[asking.code], words


def test_where_nothing_is_dropped_there_is_no_slider_and_nothing_to_share(asking, subject):
    *_, last = asking.reply(subject, QUESTION, [], 40)
    assert [last[asking.slider].visible, last[asking.share].visible] == [False, False]
    assert FULL in last[asking.answers]


def test_without_a_picture_or_a_question_nothing_is_asked(asking, subject):
    for shown, question, words in ((None, QUESTION, "There is no picture"), (subject, "  ", "There is no question.")):
        (said,) = asking.reply(shown, question, NAMES, 40)
        assert set(said) == {asking.answers}
        assert alerts(words) in said[asking.answers]


def test_the_slider_begins_where_all_methods_can_be(asking, subject):
    changed = asking.limit(subject, ["random:layers=0"], 3)
    slider = changed[asking.percent]
    assert (slider.minimum, slider.value) == (3, 3)  # one of 36 tokens
    slider = asking.limit(subject, [], 3)[asking.percent]
    assert (slider.minimum, slider.value, slider.info) == (1, 3, "On average over the model's layers.")
    slider = asking.limit(None, ["v2drop"], 3)[asking.percent]
    assert slider.minimum == slider.value > 3
    assert f"need at least {slider.minimum} %" in slider.info
    assert changed[asking.refusal].visible is False
    refused = asking.limit(subject, list(map(str, range(MOST + 1))), 3)
    assert set(refused) == {asking.refusal}
    assert refused[asking.refusal].visible
    assert alerts(f"At most {MOST} methods") in refused[asking.refusal].value


def test_choices_are_shown_with_their_probabilities_and_stand_in_the_program(asking):
    *_, last = asking.reply(examples()[0], QUESTION, ["random"], 33, choices="yes, no ,")
    shown = last[asking.answers]
    percents = [int(share) for share in re.findall(r"among the choices.*?\((\d+)%\)", shown)]
    assert [round(sum(pair) / 100) for pair in (percents[:2], percents[2:])] == [1, 1]
    assert "choices=['yes', 'no']" in last[asking.code]


def test_half_the_frames_have_half_the_tokens_of_the_video(asking, clip):
    *_, last = asking.reply(read_upload(clip, 4), QUESTION, [HALF], 33)
    whole, half = re.findall(r"([\d.]+) of ([\d.]+) \((\d+)%\)", last[asking.answers])
    assert whole[0] == whole[1] == half[1]
    assert half[2] == "50"


def test_a_picture_has_no_half_of_its_frames(asking):
    *_, last = asking.reply(examples()[0], QUESTION, [HALF], 33)
    assert alerts("Only a video") in last[asking.answers]
