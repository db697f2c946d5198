"""Folders that vLLM loads: tiny random models of the generic way, with the embedded model's tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from foveate import embedded
from tests.checkpoints import CLIP, TEXT, rename, save

__all__ = ["MARKS", "NAMES", "generic_checkpoint"]

VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 84, "initializer_range": 0.2,
}  # fmt: skip
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


class Tokens:
    """The embedded model's tokenizer with more tokens, and sizes that follow from it."""

    def __init__(self, marks: Sequence[str], **named: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(embedded.path(), **named)
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
        self.text = {**TEXT, "vocab_size": len(self.tokenizer) + len(self.tokenizer) % 2}

    def __getitem__(self, mark: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(mark))


def _internvl() -> tuple[Any, Any]:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokens = Tokens([*names.values(), "<video>"], extra_special_tokens={**names, "video_token": "<video>"})
    sides = {"patch_size": [14, 14], "image_size": [84, 84]}
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**tokens.text),
        vision_config={**VISION, **sides},
        image_token_id=tokens["<IMG_CONTEXT>"],
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    pictures = transformers.GotOcr2ImageProcessor(
        size={"height": 84, "width": 84}, crop_to_patches=True, min_patches=1, max_patches=4, **HALF
    )
    processor = transformers.InternVLProcessor(
        image_processor=pictures,
        tokenizer=tokens.tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size={"height": 84, "width": 84}),
        image_seq_length=9,
    )
    return transformers.InternVLForConditionalGeneration(config), processor


def _mistral3() -> tuple[Any, Any]:
    tokens = Tokens(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    config = transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**tokens.text, sliding_window=None),
        vision_config=transformers.PixtralVisionConfig(**{**VISION, "image_size": 168}),
        image_token_index=tokens["[IMG]"],
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(size={"longest_edge": 168}, patch_size=14),
        tokenizer=tokens.tokenizer,
        patch_size=14,
        spatial_merge_size=2,
    )
    return transformers.Mistral3ForConditionalGeneration(config), processor


def _tagged(kind: str) -> tuple[Any, Any]:
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *rows]
    tokens = Tokens(marks)
    config = getattr(transformers, f"{kind}Config")(
        text_config=transformers.LlamaConfig(**tokens.text),
        vision_config=VISION,
        image_token_id=tokens["<image>"],
        scale_factor=2,
    )
    pictures = getattr(transformers, f"{kind}ImageProcessor")(
        size={"longest_edge": 168}, max_image_size={"longest_edge": 84}, **HALF
    )
    more = {"video_processor": transformers.SmolVLMVideoProcessor()} if kind == "SmolVLM" else {}
    processor = getattr(transformers, f"{kind}Processor")(
        image_processor=pictures, tokenizer=tokens.tokenizer, image_seq_len=9, **more
    )
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), processor


def _llava_onevision() -> tuple[Any, Any]:
    tokens = Tokens(["<video>"])
    pinpoints = [[84, 84], [84, 168], [168, 84], [168, 168]]
    tower = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
    config = transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**tokens.text),
        vision_config=transformers.SiglipVisionConfig(**tower, vision_use_head=False),
        image_token_index=tokens["<image>"],
        video_token_index=tokens["<video>"],
        vision_feature_layer=-1,
        image_grid_pinpoints=pinpoints,
    )
    size = {"height": 84, "width": 84}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tokens.tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
    )
    return transformers.LlavaOnevisionForConditionalGeneration(config), processor


BUILT: dict[str, Callable[[], tuple[Any, Any]]] = {
    "internvl": _internvl,
    "mistral3": _mistral3,
    "idefics3": lambda: _tagged("Idefics3"),
    "smolvlm": lambda: _tagged("SmolVLM"),
    "llava_onevision": _llava_onevision,
}
MARKS = {"internvl": "<IMG_CONTEXT>", "mistral3": "[IMG]"}
"""What stands for an image in a prompt; "<image>" for others."""
NAMES = tuple(BUILT)


def generic_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """A tiny random model of this `model_type`."""
    torch.manual_seed(seed)
    model, processor = BUILT[name]()
    save(model, folder)
    processor.save_pretrained(folder)
    if name == "llava_onevision":
        rename(folder)
    return folder
