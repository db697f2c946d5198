"""A tiny random LLaVA saved to a folder, as a user would have one, and a picture to show it."""

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from foveate import cli

QUESTION = ("--prompt", "What is this ?", "--max-new-tokens", 5)
TEMPLATE = (
    "{% for message in messages %}USER: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image> is {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endfor %} ASSISTANT:"
)


def save_tiny_llava(folder: Path, *, side: int = 84, layers: int = 32, template: str | None = TEMPLATE) -> Path:
    """A random LLaVA of `layers` decoder layers that sees (side / 14)² tokens, with its processor."""
    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<image>", "<unk>", "USER:", "ASSISTANT:", "What", "is", "this", "?"]
    words += [*(f"w{number}" for number in range(47)), "yes", "no", "0", "1", "2", "3"]
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=side, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, image_seq_length=(side // 14) ** 2
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)  # large enough for answers to depend on the picture
    model.generation_config.update(do_sample=True, temperature=5.0)  # the command line must decode greedily anyway
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("tiny-llava"))


@pytest.fixture(scope="session")
def shallow_llava(tmp_path_factory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("shallow-llava"), layers=8)


@pytest.fixture
def picture(tmp_path) -> Path:
    image = Image.new("RGB", (120, 120), (30, 60, 90))  # a square: nothing is cropped
    draw = ImageDraw.Draw(image)
    draw.ellipse((20, 20, 60, 60), fill=(250, 40, 40))
    draw.rectangle((70, 30, 110, 80), fill=(240, 240, 60))
    path = tmp_path / "scene.png"
    image.save(path)
    return path


@pytest.fixture
def run(capsys):
    """Run `foveate` with these arguments, in this process: its exit code, stdout and stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def ask(run, tiny_llava):
    """Run a command on the tiny model: exit code, stdout, stderr."""

    def call(command, *arguments):
        return run(command, *arguments, *QUESTION, "--model", tiny_llava)

    return call
