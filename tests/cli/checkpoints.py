"""A tiny random checkpoint of Qwen3.5 with a real processor."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.tiny import IMAGE, VIDEO, VISION_START, VOCABULARY

VISION_END = 94
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "What", "is", "this", "?", "USER:", "ASSISTANT:"]
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }} {% else %}MEDIA{% endif %}"
    "{% endfor %}{% endfor %}ASSISTANT:"
)


def tokenizer(roles: dict[str, tuple[int, str]]) -> transformers.PreTrainedTokenizerFast:
    """Whole words, with the special tokens where the tiny model's config has them."""
    specials = dict(roles.values())
    words = [specials.get(at, f"w{at}") for at in range(VOCABULARY)]
    words[: len(WORDS)] = WORDS
    words_only = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens={role: token for role, (_, token) in roles.items()},
    )  # fmt: skip


def save(folder: Path, config, kind: str, processor) -> Path:
    """A model whose answers depend on what it sees, with its processor."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.update(eos_token_id=2, pad_token_id=0, suppress_tokens=[IMAGE, VIDEO, VISION_START, 94])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_qwen3_5(folder: Path) -> Path:
    """Qwen3.5 with a state in the place of a cache in two of six layers. Its processor needs torchvision."""
    from tests.families.test_qwen3_5 import config

    settings = config()
    vision = settings.vision_config
    patches = {
        "patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }  # fmt: skip
    side = vision.patch_size * vision.spatial_merge_size
    size = {"shortest_edge": 16 * side**2, "longest_edge": 64 * side**2}
    roles = {
        "image_token": (IMAGE, "<|image_pad|>"), "video_token": (VIDEO, "<|video_pad|>"),
        "vision_start_token": (VISION_START, "<|vision_start|>"), "vision_end_token": (VISION_END, "<|vision_end|>"),
    }  # fmt: skip
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=size, **patches),
        video_processor=transformers.Qwen3VLVideoProcessor(size=size, **patches),
        tokenizer=tokenizer(roles),
        chat_template=TEMPLATE.replace("MEDIA", "<|vision_start|><|image_pad|><|vision_end|> "),
    )
    return save(folder, settings, "Qwen3_5ForConditionalGeneration", processor)
