"""Requests of OpenAI's clients as they are read, and errors as they are told; over HTTP: tests/test_servers.py."""

import base64
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from foveate.errors import BudgetError, FoveateError, InputError, SettingError
from foveate.naming import parse
from tests.ask.test_pictures import png_claiming
from tests.films import film

sys.path.append(str(Path(__file__).parents[1] / "examples" / "servers"))
from chat import Chat, Message, Refusal, error_of, opened

QUESTION = {"role": "user", "content": "What is it?"}


def request(**fields):
    return Chat.model_validate({"model": "m", "messages": [QUESTION]} | fields)


def url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def turn(*parts):
    return Message.model_validate({"role": "user", "content": list(parts)})


def test_what_a_client_cannot_mend_is_not_told():
    status, body, headers = error_of(RuntimeError("/srv/model: disk is full"))
    assert (status, body["error"]["type"], headers) == (500, "server_error", {})
    assert "disk" not in str(body)
    assert error_of(BudgetError("The floor is 12 %.", 0.12))[:2] == (
        400,
        {"error": {"message": "The floor is 12 %.", "type": "invalid_request_error", "param": None, "code": None}},
    )
    assert error_of(Refusal("Later.", status=429, wait=5))[2] == {"Retry-After": "5"}


def test_a_field_of_the_wrong_type_is_named_and_its_value_not_repeated():
    with pytest.raises(ValidationError) as caught:
        request(messages=[{"role": "tool", "content": "hush"}])
    status, body, _ = error_of(caught.value)
    assert (status, body["error"]["param"]) == (400, "messages.0.role")
    assert "hush" not in str(body)


def test_a_picture_is_opened_by_its_header_alone(monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)  # lmms-eval sets it
    part = {"type": "image_url", "image_url": {"url": url(png_claiming(3_000, 2_000))}}
    ((image,),) = [message["content"] for message in opened([turn(part)], 6_000_000)]
    assert image["image"].size == (3_000, 2_000)
    with pytest.raises(OSError, match="truncated"):
        image["image"].load()
    with pytest.raises(Refusal, match="5,999,999 pixels") as caught:
        opened([turn(part)], 5_999_999)
    assert (caught.value.status, caught.value.param) == (413, "messages.0.content.0")


def test_pixels_of_all_messages_count_and_small_pictures_count_more():
    part = {"type": "image_url", "image_url": {"url": url(png_claiming(1, 1))}}
    assert len(opened([turn(part), turn(part)], 2 * 2**18)) == 2
    with pytest.raises(Refusal, match="pixels"):
        opened([turn(part), turn(part)], 2 * 2**18 - 1)


def test_a_films_frames_count_as_many_as_are_asked_for(tmp_path):
    data = film(tmp_path / "clip.mp4", 60, size=(1024, 512)).read_bytes()
    part = {"type": "video_url", "video_url": {"url": url(data, "video/mp4")}}
    for asked, frames in (({}, 32), ({"max_frames": 5}, 5), ({"fps": 2, "video_end": 3}, 6)):
        ((clip,),) = [message["content"] for message in opened([turn(part | asked)], frames * 2**19)]
        assert clip == {"type": "video", "video": data, **asked}
        with pytest.raises(Refusal, match="pixels"):
            opened([turn(part | asked)], frames * 2**19 - 1)
    with pytest.raises(InputError, match="max_frames"):
        opened([turn(part | {"max_frame": 2})], 10**9)
    with pytest.raises(SettingError, match="greater"):
        opened([turn(part | {"max_frames": -2})], 10**9)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM"])
def test_other_kinds_of_pictures_are_refused(kind, tmp_path):
    Image.new("RGB", (90, 90), "red").save(path := tmp_path / "a", kind)
    with pytest.raises(Refusal, match="PNG, JPEG, WebP"):
        opened([turn({"type": "image_url", "image_url": {"url": url(path.read_bytes())}})], 10**9)


IMAGE = {"type": "image_url", "image_url": {"url": url(png_claiming(9, 9)), "detail": None}, "text": None}
REPLY = {"role": "assistant", "content": "A cat.", "refusal": None, "annotations": [], "audio": None, "name": ""}
SAYS_NOTHING = {
    "stream": None, "stream_options": {}, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"},
    "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "logprobs": False,
    "functions": None, "user": "",
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS_NOTHING)
def test_a_field_that_says_nothing_is_as_if_it_were_left_out(name):
    assert request(**{name: SAYS_NOTHING[name]}) == request()


def test_a_clients_own_message_comes_back_as_it_was_dumped():
    asked = request(messages=[turn(IMAGE).model_dump(), REPLY, {**QUESTION, "name": None}])
    said = opened(asked.messages, 10**9)
    assert said[1:] == [{"role": "assistant", "content": "A cat."}, QUESTION]
    assert set(said[0]["content"][0]) == {"type", "image"}


def test_a_method_of_null_is_the_untouched_model():
    assert ("method" in request(method=None).model_fields_set, "method" in request().model_fields_set) == (True, False)


@pytest.mark.parametrize(
    "fields",
    [{"presence_penalty": 0.5}, {"tools": [{}]}, {"response_format": {"type": "json_object"}}, {"logprobs": True}],
)
def test_what_asks_for_something_that_is_not_done_is_refused(fields):
    with pytest.raises(ValidationError) as caught:
        request(**fields)
    assert error_of(caught.value)[1]["error"]["param"] in fields


@pytest.mark.parametrize("temperature", [-0.1, 2.1, 5, float("nan")])
def test_a_temperature_is_refused_as_openais_api_does(temperature):
    with pytest.raises(ValidationError) as caught:
        request(temperature=temperature)
    assert error_of(caught.value)[1]["error"]["param"] == "temperature"
    assert request(temperature=2).generation(8).temperature == 2


def test_a_client_is_told_what_to_send_and_no_command_to_run():
    for name in ("v3drop", "v2drop/none", "qwertz"):
        with pytest.raises(FoveateError) as caught:
            parse(name)
        message = error_of(caught.value)[1]["error"]["message"]
        assert "vidcom2" in message
        assert " run" not in message
