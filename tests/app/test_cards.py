"""What the page shows of answers: numbers that are the answer's, escaped text, and the right picture at every stop."""

import pytest

from foveate.app.answers import FULL, Reply, Shelf, answer
from foveate.app.cards import cards
from foveate.app.places import panels, places_of, stop_words

QUESTION = "What is this ?"
EVIL = "<script>alert(1)</script>"


def asked(vlm, subject, *names):
    made = []
    for name in (None, *names):
        made.append(list(answer(vlm, Shelf(), subject, QUESTION, name, name and 0.4, max_new_tokens=3))[-1])
    return made


@pytest.fixture(scope="module")
def replies(vlm, tmp_path_factory):
    from PIL import Image

    from foveate.app.limits import opened

    path = tmp_path_factory.mktemp("cards") / "p.png"
    Image.effect_mandelbrot((84, 84), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    subject = opened(path)
    return subject, asked(vlm, subject, "v2drop", "averagepool")


def test_a_card_says_what_the_answer_took(replies):
    _, (full, v2drop, pooled) = replies
    page = cards([full, v2drop, pooled], "seven")
    assert page.count("<article") == 3
    assert "36 of 36 (100%)" in page
    for reply in (v2drop, pooled):
        made = reply.answer
        assert f"{made.spent:.0f} of 36 ({made.retention:.0%})" in page
        assert f"({made.flops / full.answer.flops:.0%})" in page
        assert f"({made.kv_bytes / made.kv_bytes_whole:.0%})" in page
        assert f"{reply.seconds:.2f} s in all" in page
    assert "The right answer is <b>seven</b>." in page


def test_an_answer_on_its_way_an_error_and_a_reused_picture_are_told_apart():
    page = cards([Reply(FULL, "a wo"), Reply("v2drop", error="no budget"), Reply("random", reused=True)])
    assert page.count("fv-waiting") == 2
    assert "a wo" in page
    assert "role='alert'>no budget" in page
    assert "picture seen before" in page
    assert "right answer" not in page


def test_nothing_that_is_shown_is_read_as_html(vlm, replies):
    subject, made = replies
    page = cards([Reply(EVIL, EVIL), Reply(EVIL, error=EVIL)], EVIL)
    places = places_of(subject, [made[0], Reply(EVIL, answer=made[1].answer)])
    for shown in (page, panels(places, 1), stop_words(places, 1)):
        assert "<script" not in shown
    assert "&lt;script&gt;" in panels(places, 1)


def test_the_slider_stops_wherever_something_was_dropped(replies):
    subject, made = replies
    places = places_of(subject, made)
    dropped = [stage for reply in made[1:] for stage in reply.answer.trace.stages if stage.after[0] < stage.before[0]]
    assert len(places.stops) == len({stage.place for stage in dropped}) > 2
    assert places.stops == sorted(places.stops)
    words = [places.words(stop) for stop in range(len(places.stops) + 1)]
    assert words[0] == "the picture"
    layers = sorted(stage.layer for stage in dropped if stage.layer)
    assert words[-len(layers) :] == [f"before decoder layer {layer} of 32" for layer in layers]


def test_a_panel_shows_what_was_left_at_the_stop(replies):
    subject, made = replies
    places = places_of(subject, made)
    v2drop = next(kept for kept in places.kept if kept.name == "v2drop")
    assert panels(places, 0).count(places.plain) == 3
    last = panels(places, len(places.stops))
    assert f"{v2drop.stages[-1][1]} of 36 tokens" in last
    assert v2drop.stages[-1][2] in last
    assert v2drop.stages[0][2] not in last
    for stop in range(1, len(places.stops) + 1):
        assert panels(places, stop).count("<figure ") == 3
    assert panels(places, 99) == panels(places, 0)


def test_before_anything_is_asked_there_is_the_picture_alone(subject):
    places = places_of(subject)
    assert places.stops == []
    assert panels(places, 0).count("<figure ") == 1
    assert "Dark and hatched" not in panels(places, 0)
    assert stop_words(places, 0) == ""


def test_a_method_whose_tokens_have_no_place_says_so(replies, monkeypatch):
    subject, made = replies
    record = made[1].answer.trace.history[0]
    monkeypatch.setitem(record.__dict__, "boxes", [[None]])
    places = places_of(subject, made[:2])
    assert "is not known" in panels(places, 0)
