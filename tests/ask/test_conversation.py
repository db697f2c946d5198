"""Chat messages with their files read, or refused by name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, strategies as st
from PIL import Image

from foveate.ask.conversation import Conversation
from foveate.ask.media import Picture
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.video import Clip
from tests.ask.conftest import image, text, user


@pytest.fixture
def picture():
    return Image.new("RGB", (30, 20), "red")


def said(words, *images, role="user"):
    content = [{"type": "image", "url": shown} for shown in images]
    return {"role": role, "content": [*content, {"type": "text", "text": words}]}


def conversation(*messages):
    return Conversation.of(messages, frames=4)


def test_ocr_tokens_stand_behind_the_question_and_before_the_instruction():
    asked = conversation(said("What is the brand?\nAnswer the question using a single word or phrase."))
    question = asked.with_ocr("what is the BRAND?", ["Dakota", "DIGITAL"])
    ((_, ((_, words),)),) = question.turns
    assert words == (
        "What is the brand?\nReference OCR token: Dakota, DIGITAL\nAnswer the question using a single word or phrase."
    )
    assert question.with_ocr("what is the BRAND?", ["Dakota", "DIGITAL"]).turns == question.turns


def test_names_tell_pictures_texts_and_decoding_apart(picture):
    other = Image.new("RGB", (20, 30), "red")
    first, second, third = (conversation(said(*what)) for what in (("a", picture), ("a", other), ("b", picture)))
    assert first.media_name() == third.media_name() != second.media_name()
    assert conversation(said("a")).media_name() == ""
    names = {asked.name({"max_new_tokens": count}) for asked in (first, second, third) for count in (1, 2)}
    assert len(names) == 6
    assert first.name({}) == conversation(said("a", picture.copy())).name({})


def test_the_turns_keep_their_roles_and_order(picture):
    turns = conversation(
        {"role": "system", "content": "Be brief."},
        user(text("Look:"), image(picture), image(picture), text("What is it?")),
        {"role": "assistant", "content": "A cat."},
        user(text("And now?")),
    )
    assert [(role, [kind for kind, _ in parts]) for role, parts in turns.turns] == [
        ("system", ["text"]),
        ("user", ["text", "image", "image", "text"]),
        ("assistant", ["text"]),
        ("user", ["text"]),
    ]
    assert turns.texts == ["Be brief.", "Look:", "What is it?", "A cat.", "And now?"]
    assert len(turns.images) == len(turns.media) == 2


@pytest.mark.parametrize("url", ["http://example.org/cat.png", "https://example.org/cat.png"])
def test_nothing_is_downloaded(url):
    for kind in ("image", "video"):
        with pytest.raises(InputError, match="downloaded"):
            conversation(user({"type": kind, "url": url}))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is empty"),
        (["hello"], "A message must be"),
        ([{"role": "user"}], "A message must be"),
        ([{"role": 3, "content": "x"}], "The role of a message must be a text"),
        ([{"role": "user", "content": 7}], "a text or a list of parts; got 7"),
        ([user("hello")], "A part of a message must be"),
        ([user({"type": "image"})], r'needs "image", "path" or "url"; got the keys \[\'type\'\]'),
        ([user(image("nowhere.png"))], "nowhere.png cannot be read"),
    ],
)
def test_messages_of_another_shape_are_refused(messages, says):
    with pytest.raises(InputError, match=says):
        Conversation.of(messages)


def test_sound_is_refused():
    with pytest.raises(UnsupportedError, match="audio"):
        conversation({"role": "user", "content": [{"type": "audio", "url": "song.wav"}]})


def test_other_media_take_the_places_of_the_old(picture):
    clip = Clip(Path("film.mp4"), np.zeros((2, 4, 4, 3), np.uint8), (0.5, 1.5), 0.0, 2.0, 10.0)
    before = conversation(user(image(picture), {"type": "video", "video": clip}, text("What?")))
    other = Picture(None, Image.new("RGB", (2, 2)))
    assert before.with_media([other, clip]).media == [other, clip]
    after = before.with_media([other, clip], frames_as_images=True)
    assert [kind for kind, _ in after.parts] == ["image", "image", "image", "text"]
    assert after.clips == []


def test_films_of_the_same_frames_at_other_times_have_other_names():
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    films = [Clip(Path("a.mp4"), frames, (0.0, end), 0.0, end, 1.0) for end in (1.0, 2.0)]
    names = {Conversation.about([film], "What?").media_name() for film in films}
    assert len(names) == 2


PARTS = st.sampled_from([("text", "a"), ("image", "I"), ("video", "V")])
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.lists(PARTS).map(tuple)))


@given(turns=TURNS)
def test_what_is_cut_in_two_is_joined_again(turns):
    whole = Conversation(tuple(turns))
    for count in range(1, len(whole.media) + 1):
        begun, behind = whole.split(count)
        assert len(begun.media) == count
        assert begun.parts[-1][0] != "text"
        assert begun.parts + behind.parts == whole.parts
        assert begun.with_turns(behind).turns == whole.turns
    with pytest.raises(SettingError, match="pictures"):
        whole.split(len(whole.media) + 1)


@given(turns=TURNS, data=st.data())
def test_texts_leave_with_the_pictures_before_them(turns, data):
    more = {place: {"at": place} for place in range(len(turns))}
    whole = Conversation(tuple(("user", parts) for _, parts in turns), more)
    assume(whole.media)
    start = data.draw(st.integers(0, len(whole.media) - 1))
    end = data.draw(st.integers(start + 1, len(whole.media)))
    left = whole.without_texts(start, end)
    places = [place for place, (kind, _) in enumerate(whole.parts) if kind != "text"]
    until = places[end] if end < len(places) else len(whole.parts)
    assert left.parts == whole.parts[: places[start]] + whole.parts[until:]
    cut = len(whole.split(start + 1)[0].turns) - 1
    for place, (_, parts) in enumerate(left.turns):
        assert place == cut or parts == turns[left.more[place]["at"]][1]


def test_what_follows_goes_on_with_the_same_turn():
    begun, behind = Conversation((("user", (("image", "I"), ("text", "a"))), ("assistant", ()))).split(1)
    with pytest.raises(SettingError, match="assistant"):
        Conversation((("assistant", ()),)).with_turns(behind)
    assert begun.with_turns(Conversation((("user", ()),))).turns == begun.turns
