"""The embedded model, ready to be asked, and tiny random ones of every family."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor, CLIPImageProcessorPil, LlavaForConditionalGeneration

import foveate as fv
from foveate import embedded
from foveate.ask.conversation import Conversation
from foveate.ask.loading import load
from foveate.ask.media import Picture
from foveate.ask.prompt import Prompt
from foveate.embedded.scenes import scene
from foveate.video import Clip
from tests import models

INDEX = 900_000
"""Scenes from here on were never trained on."""


@pytest.fixture(scope="session")
def vlm():
    return fv.load()


@pytest.fixture(scope="session")
def small():
    """A small random model behind the embedded model's processor: what it says is nonsense, and it is quick."""
    config = AutoConfig.from_pretrained(embedded.path())
    config.text_config.update({"num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 48})
    config.text_config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8})
    config.vision_config.update({"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48})
    config.vision_config.update({"num_attention_heads": 2})
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)  # answers that differ from question to question
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.bad_words_ids = [[config.image_token_id]]
    return fv.VLM(model, AutoProcessor.from_pretrained(embedded.path()), "small")


@pytest.fixture(scope="session")
def cropping():
    """The embedded model behind a processor that cuts off what stands beside the middle square, as many do."""
    vlm = fv.load()
    vlm.name = "cropping"
    images = vlm.processor.image_processor
    vlm.processor.image_processor = CLIPImageProcessorPil(
        size=images.size, crop_size=images.crop_size, image_mean=images.image_mean, image_std=images.image_std
    )
    return vlm


@pytest.fixture(scope="session")
def demo():
    return Image.open(embedded.picture()).convert("RGB")


@pytest.fixture(scope="session")
def scenes():
    """Three pictures of 336 x 336."""
    return [Image.fromarray(scene("held-out", INDEX + number).image) for number in range(3)]


@pytest.fixture
def wide(demo):
    """The demo picture at the left end of one twice as wide."""
    picture = Image.new("RGB", (672, 336), (127, 127, 127))
    picture.paste(demo, (0, 0))
    return picture


@pytest.fixture(scope="session")
def unwarned():
    """The embedded model, which need not say that pictures are no drawings."""
    vlm = load("embedded", device="cpu")
    vlm.warned = True
    return vlm


def noise(folder, count):
    """Pictures of noise, in files."""
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    return paths


def user(*content):
    """A turn of the user."""
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


def image(source):
    return {"type": "image", "image": source}


def clip_of(*pictures):
    frames = np.stack([np.asarray(picture) for picture in pictures])
    return Clip(Path("film.mp4"), frames, tuple(map(float, range(len(frames)))), 0.0, float(len(frames)), 1.0)


def random_vlm(family, monkeypatch=None):
    """A VLM around a family's tiny random model, with a processor that only decodes."""
    model = models.tiny(family)
    if monkeypatch is not None:
        monkeypatch.setattr(model.generation_config, "bad_words_ids", models.NO_PLACEHOLDERS["bad_words_ids"])
    processor = SimpleNamespace(decode=lambda ids, **_: " ".join(map(str, ids)), tokenizer=None)
    return fv.VLM(model, processor, family)


def prompt_of(vlm, inputs, pictures=1):
    """A prompt of tensors that are there already."""
    shown = [Picture(None, Image.fromarray(np.zeros((8, 8, 3), np.uint8))) for _ in range(pictures)]
    return Prompt(vlm.card, Conversation.about(shown, "What ?"), inputs, tuple(shown))


def asked(vlm, word="ti", lengths=(3, 5, 9)):
    """Questions of different lengths about the same pictures, on a tiny model."""
    prompts = []
    for length in lengths:
        question = torch.arange(11, 11 + length)[None]
        sample = models.batch(vlm.name, [word])
        ids = torch.cat((sample["input_ids"], question), dim=1)
        sample |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        prompts.append(prompt_of(vlm, sample | models.TINY[vlm.name].extra(ids), len(word) - word.count("t")))
    return prompts
