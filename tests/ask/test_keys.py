"""A key of a message is done, handed to the chat template, or refused; never dropped."""

import base64
import copy
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import foveate as fv
from foveate import embedded
from foveate.ask.conversation import Conversation
from foveate.ask.prompt import text_of
from foveate.errors import InputError, UnsupportedError
from tests import films

SIZES = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
FILM = (
    "fps", "nframes", "num_frames", "max_frames", "min_frames", "video_start", "video_end", "start_time",
    "end_time",
)  # fmt: skip


@pytest.fixture(scope="module")
def vlm():
    return fv.load()


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    return films.film(tmp_path_factory.mktemp("film") / "film.mp4", count=100, rate=10)


def _seconds(film, **keys):
    (clip,) = Conversation.of([{"role": "user", "content": [{"type": "video", "video": str(film), **keys}]}]).clips
    return [round(float(second), 1) for second in clip.seconds]


@pytest.mark.parametrize(
    ("keys", "frames"),
    [({"fps": 1.0}, 10), ({"nframes": 2}, 2), ({"num_frames": 3}, 3), ({"max_frames": 4, "fps": 2}, 4)],
)
def test_a_film_part_says_how_many_frames(film, keys, frames):
    assert len(_seconds(film, **keys)) == frames
    assert len(_seconds(film)) == 32


@pytest.mark.parametrize("key", [*SIZES, "min_frames", "fsp", "video_satrt", "anything"])
def test_a_key_of_a_film_that_is_not_done_is_refused(film, key):
    with pytest.raises(InputError, match=key):
        _seconds(film, **{key: 56})


@pytest.mark.parametrize("key", [*SIZES, *FILM, "detial"])
def test_a_key_of_a_picture_that_is_not_done_is_refused(key):
    for part in ({"image": "a.png", key: 3}, {"image_url": {"url": "a.png", key: 3}}):
        with pytest.raises(InputError, match=key):
            Conversation.of([{"role": "user", "content": [{"type": "image_url", **part}]}])


def test_openai_keys_are_read():
    url = {"url": str(embedded.picture())}
    for detail in ("auto", "high", None):
        part = {"type": "image_url", "image_url": {**url, "detail": detail}}
        assert len(Conversation.of([{"role": "user", "content": [part]}]).images) == 1
    with pytest.raises(InputError, match="detail"):
        Conversation.of([{"role": "user", "content": [{"type": "image_url", "image_url": {**url, "detail": "low"}}]}])


@pytest.mark.parametrize("form", ["path", "base64", "bytes", "picture"])
def test_pictures_beside_the_content_are_shown(vlm, form):
    path = Path(embedded.picture())
    image = {
        "path": str(path),
        "base64": base64.b64encode(path.read_bytes()).decode(),
        "bytes": path.read_bytes(),
        "picture": Image.open(io.BytesIO(path.read_bytes())),
    }[form]
    message = {"role": "user", "content": "What does the text say?", "images": [image]}
    prepared = vlm.prepare(messages=[message])
    assert prepared.vision_tokens == vlm.prepare(path, "What does the text say?").vision_tokens


MORE = {"tool_calls": [{"id": 1}], "reasoning_content": "Hm.", "name": "Ann", "tool_call_id": "a", "image": "a.png"}


@pytest.mark.parametrize("key", MORE)
def test_a_key_that_the_template_does_not_read_is_refused(vlm, key):
    with pytest.raises(InputError, match=key):
        vlm.prepare(messages=[{"role": "user", "content": "Who?", key: MORE[key]}])


def test_a_key_that_the_template_reads_is_handed_to_it(vlm):
    processor = copy.copy(vlm.processor)
    processor.chat_template = "{% for m in messages %}{{ m.name }}|{{ m.tool_calls }}{% endfor %}"
    said = Conversation.of([{"role": "assistant", "content": None, "name": "Ann", "tool_calls": [{"id": 7}]}])
    assert text_of(SimpleNamespace(), processor, said) == "Ann|[{'id': 7}]"


def test_a_key_that_says_nothing_is_no_key(vlm):
    empty = {"tool_calls": None, "annotations": [], "refusal": None, "name": "", "audio": {}}
    said = vlm.prepare(messages=[{"role": "user", "content": "Who?", **empty}])
    assert said.vision_tokens == 0


def test_conversations_with_other_keys_have_other_names():
    names = {Conversation.of([{"role": "user", "content": "Who?", "name": name}]).name({}) for name in ("Ann", "Bo")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("part", "error", "word"),
    [
        ({"type": "image", "image": "a.png", "path": "b.png"}, InputError, "path"),
        ({"type": "text", "content": "Who?"}, InputError, "text"),
        ({"type": "text", "text": "Who?", "txt": "a"}, InputError, "text"),
        ({"type": "input_text", "text": "Who?"}, UnsupportedError, "input_text"),
        ({"type": "video", "video": "a.mp4", "nframe": 2}, InputError, "nframes"),
    ],
)
def test_a_part_that_cannot_be_meant_is_refused(part, error, word):
    with pytest.raises(error, match=word):
        Conversation.of([{"role": "user", "content": [part]}])


def test_the_embedded_template_says_the_system_text_and_refuses_other_roles(vlm):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    text = text_of(vlm.model, vlm.processor, Conversation.of(turns))
    assert text == "Be brief. USER: Who? ASSISTANT:"
    with pytest.raises(InputError, match="No role usr"):
        text_of(vlm.model, vlm.processor, Conversation.of([{"role": "usr", "content": "Who?"}]))


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": io.BytesIO(), "content": "Who?"}],
        [{"role": "user", "content": io.BytesIO()}],
        [{"role": "user", "content": [{"type": io.BytesIO(), "text": "Who?"}]}],
        [{"role": "user", "content": [{"type": "image", "image": object()}]}],
        [{"role": "user", "content": [{"type": "image", "image": "a.png", "detail": io.BytesIO()}]}],
        [{"role": "user", "content": "Who?", "images": io.BytesIO()}],
    ],
)
def test_a_refusal_names_a_type_and_no_place_in_memory(vlm, messages):
    with pytest.raises((InputError, fv.SettingError, UnsupportedError)) as refused:
        vlm.ask(messages=messages)
    assert " at 0x" not in str(refused.value)
    with pytest.raises(fv.SettingError, match=r"a _io\.BytesIO"):
        vlm.ask([], io.BytesIO())


def test_a_question_without_any_text_is_refused(vlm):
    picture = {"type": "image", "image": embedded.picture()}
    for content in ([picture], [picture, {"type": "text", "text": " "}], ""):
        with pytest.raises(fv.SettingError, match="question"):
            vlm.ask(messages=[{"role": "user", "content": content}])
    with pytest.raises(fv.SettingError, match="question"):
        vlm.ask(embedded.picture(), "")
    system = {"role": "system", "content": "Read the text."}
    assert vlm.prepare(messages=[system, {"role": "user", "content": [picture]}]).vision_tokens
