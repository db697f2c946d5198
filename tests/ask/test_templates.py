"""How a conversation becomes a model's input: its own template, and the conditions of LLaVA's papers."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from foveate.ask.conversation import Conversation
from foveate.ask.prompt import encode
from foveate.errors import InputError, UnsupportedError
from foveate.video import Clip
from tests.ask.conftest import user

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def said(text, *images, role="user"):
    content = [{"type": "image", "url": image} for image in images]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def conversation(*messages):
    return Conversation.of(messages, frames=4)


class Processor:
    """Notes what it is called with."""

    image_token, tokenizer = "<image>", SimpleNamespace(bos_token="<s>")
    image_processor = SimpleNamespace(image_mean=[0.5, 0.25, 0.0])
    chat_template = None

    def __call__(self, **given):
        self.given = given
        return given


def stub(model_type="llava"):
    return SimpleNamespace(config=SimpleNamespace(model_type=model_type)), Processor()


def clip(count=1):
    seconds = tuple(index + 0.5 for index in range(count))
    return Clip(Path("film.mp4"), np.zeros((count, 4, 4, 3), np.uint8), seconds, 0.0, float(count), 10.0)


@pytest.fixture
def picture():
    return Image.new("RGB", (30, 20), "red")


def test_the_llava_protocol_is_vicuna_with_its_system_text(picture):
    model, processor = stub()
    encode(model, processor, conversation(said("What is it?", picture)), "llava")
    assert processor.given["text"] == [f"{SYSTEM} USER: <image>\nWhat is it? ASSISTANT:"]


def test_the_llava_protocol_keeps_turns_apart(picture):
    model, processor = stub()
    turns = (said("Be brief.", role="system"), said("A?", picture), said("B.", role="assistant"), said("C?"))
    encode(model, processor, conversation(*turns), "llava")
    assert processor.given["text"] == ["Be brief. USER: <image>\nA? ASSISTANT: B.</s> USER: C? ASSISTANT:"]


def test_the_llava_protocol_is_for_llava_alone(picture):
    with pytest.raises(UnsupportedError, match="model"):
        encode(*stub("qwen2_vl"), conversation(said("What is it?", picture)), "llava")


def test_the_llava_protocol_is_for_pictures_alone():
    film = user({"type": "video", "video": clip()})
    with pytest.raises(UnsupportedError, match="video"):
        encode(*stub(), conversation(film), "llava")


def test_a_video_goes_to_the_processor_sampled_already():
    model, processor = stub("qwen2_vl")
    processor.video_processor, processor.chat_template = object(), "{{ messages }}"
    processor.apply_chat_template = lambda turns, **_: str(turns)
    film = clip(2)
    encode(model, processor, conversation(user({"type": "video", "video": film})))
    arguments = processor.given
    assert arguments["videos"][0] is film.frames
    assert arguments["do_sample_frames"] is False
    assert arguments["video_metadata"][0]["frames_indices"] == [5, 15]
    assert "'type': 'video'" in arguments["text"][0]


def test_without_a_template_placeholders_stand_before_the_texts(picture):
    model, processor = stub()
    encode(model, processor, conversation(said("A?", picture), said("B.", role="assistant"), said("C?", picture)))
    assert processor.given["text"] == ["<image>\n<image>\nA?\nB.\nC?"]
    assert len(processor.given["images"]) == 2


def test_a_text_that_begins_a_sequence_gets_no_second_begin(picture):
    model, processor = stub()
    processor.chat_template = "{{ messages }}"
    for begin, special in (("<s>", False), ("", None)):
        processor.apply_chat_template = lambda turns, begin=begin, **_: f"{begin}USER:"
        encode(model, processor, conversation(said("A?")))
        assert processor.given.get("add_special_tokens") is special
        assert processor.given["images"] is None


@pytest.mark.parametrize("protocol", ["own", "llava"])
def test_a_misspelt_role_is_refused_where_no_template_reads_it(protocol):
    model, processor = stub()
    with pytest.raises(InputError, match="asistant"):
        encode(model, processor, conversation(said("A?"), said("B.", role="asistant"), said("C?")), protocol)
