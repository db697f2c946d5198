from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from foveate import embedded
from foveate._loading import Loaded
from foveate.cli.prompt import prepare
from foveate.errors import UnknownNameError, UnsupportedError
from foveate.eval import prompts
from foveate.eval.prompts import Conversation, encoder
from foveate.video import Clip

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def said(text, *images, role="user"):
    content = [{"type": "image", "url": image} for image in images]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def conversation(*messages):
    return Conversation.of(messages, most_frames=4)


class Processor:
    """Notes what it is called with."""

    image_token, tokenizer = "<image>", SimpleNamespace(bos_token="<s>")
    image_processor = SimpleNamespace(image_mean=[0.5, 0.25, 0.0])
    chat_template = None

    def __call__(self, **given):
        self.given = given
        return given


def stub(model_type="llava"):
    return Loaded("stub", SimpleNamespace(config=SimpleNamespace(model_type=model_type)), Processor())


@pytest.fixture(scope="module")
def loaded():
    return Loaded("embedded", *embedded.load())


@pytest.fixture
def picture():
    return Image.new("RGB", (30, 20), "red")


def test_the_own_protocol_is_what_foveate_generate_does(loaded, picture):
    found = encoder("own")(loaded, conversation(said("What colour is the star?", picture)))
    expected = prepare(loaded, [picture], "What colour is the star?")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_the_llava_protocol_is_vicuna_with_its_system_text(picture):
    one = stub()
    encoder("llava")(one, conversation(said("What is it?", picture)))
    assert one.processor.given["text"] == [f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:"]


def test_the_llava_protocol_keeps_turns_apart(picture):
    one = stub()
    turns = (said("Be brief.", role="system"), said("A?", picture), said("B.", role="assistant"), said("C?"))
    encoder("llava")(one, conversation(*turns))
    assert one.processor.given["text"] == ["Be brief. USER: <image>\nA? ASSISTANT: B.</s> USER: C? ASSISTANT:"]


def test_the_llava_protocol_pads_to_a_square_with_the_mean_colour(picture):
    one = stub()
    encoder("llava")(one, conversation(said("What is it?", picture)))
    (square,) = one.processor.given["images"]
    assert square.size == (30, 30)
    assert square.getpixel((15, 0)) == square.getpixel((15, 29)) == (127, 63, 0)
    assert square.crop((0, 5, 30, 25)).tobytes() == picture.tobytes()


def test_the_llava_protocol_is_for_llava_alone(picture):
    with pytest.raises(UnsupportedError, match=r"a qwen2_vl model\. Use own"):
        encoder("llava")(stub("qwen2_vl"), conversation(said("What is it?", picture)))


def test_ocr_tokens_stand_behind_the_question_and_before_the_instruction():
    asked = conversation(said("What is the brand?\nAnswer the question using a single word or phrase."))
    found = asked.with_ocr("what is the BRAND?", ["Dakota", "DIGITAL"])
    ((_, ((_, text),)),) = found.turns
    assert text == (
        "What is the brand?\nReference OCR token: Dakota, DIGITAL\nAnswer the question using a single word or phrase."
    )
    assert found.with_ocr("what is the BRAND?", ["Dakota", "DIGITAL"]).turns == found.turns


def test_an_unknown_protocol_fails_with_the_list():
    with pytest.raises(UnknownNameError, match="There are: own, llava"):
        encoder("vicuna")


def test_names_tell_pictures_texts_and_decoding_apart(picture):
    other = Image.new("RGB", (20, 30), "red")
    one, two, three = (conversation(said(*what)) for what in (("a", picture), ("a", other), ("b", picture)))
    assert one.media() == three.media() != two.media()
    assert conversation(said("a")).media() == ""
    names = {asked.name({"max_new_tokens": count}) for asked in (one, two, three) for count in (1, 2)}
    assert len(names) == 6
    assert one.name({}) == conversation(said("a", picture.copy())).name({})


def test_pictures_may_be_files_and_are_rgb(tmp_path):
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    (image,) = conversation(said("What?", str(tmp_path / "grey.png"))).images
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (7, 7, 7))


def test_a_video_goes_to_the_processor_sampled_already(monkeypatch):
    clip = Clip(Path("film.mp4"), np.zeros((2, 4, 4, 3), np.uint8), (0.5, 1.5), 0.0, 2.0, 10.0)
    asked = {}
    monkeypatch.setattr(prompts, "read", lambda path, **given: asked.update(given, path=path) or clip)
    one = stub("qwen2_vl")
    one.processor.video_processor, one.processor.chat_template = object(), "{{ messages }}"
    one.processor.apply_chat_template = lambda turns, **_: str(turns)
    film = {"role": "user", "content": [{"type": "video", "url": "film.mp4", "start_time": 1.0}]}
    encoder("own")(one, conversation(film))
    assert asked == {"path": "film.mp4", "frames": 4, "start": 1.0, "end": None}
    given = one.processor.given
    assert given["videos"][0] is clip.frames
    assert given["do_sample_frames"] is False
    assert given["video_metadata"][0]["frames_indices"] == [5, 15]
    assert "'type': 'video'" in given["text"][0]


def test_a_model_that_reads_no_videos_says_so(monkeypatch, loaded):
    clip = Clip(Path("film.mp4"), np.zeros((1, 4, 4, 3), np.uint8), (0.0,), 0.0, 1.0, 1.0)
    monkeypatch.setattr(prompts, "read", lambda *_, **__: clip)
    film = {"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}
    with pytest.raises(UnsupportedError, match="LlavaProcessor reads no videos"):
        encoder("own")(loaded, conversation(film))


def test_sound_is_refused():
    with pytest.raises(UnsupportedError, match="A message holds audio"):
        conversation({"role": "user", "content": [{"type": "audio", "url": "song.wav"}]})
