"""Requests of OpenAI's clients as they are read, and errors as they are told; over HTTP: tests/test_servers.py."""

import base64
import sys
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from foveate.errors import BudgetError, InputError, SettingError
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
    with pytest.raises(InputError, match="Did you mean max_frames"):
        opened([turn(part | {"max_frame": 2})], 10**9)
    with pytest.raises(SettingError, match="frames should be greater"):
        opened([turn(part | {"max_frames": -2})], 10**9)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM"])
def test_other_kinds_of_pictures_are_refused(kind, tmp_path):
    Image.new("RGB", (90, 90), "red").save(path := tmp_path / "a", kind)
    with pytest.raises(Refusal, match="PNG, JPEG, WebP"):
        opened([turn({"type": "image_url", "image_url": {"url": url(path.read_bytes())}})], 10**9)
