"""Folders that vLLM loads: the embedded model, and tiny random ones, in the names of a hub checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from foveate import embedded

__all__ = ["embedded_checkpoint", "llava_checkpoint", "next_checkpoint", "rename", "save"]

TOKENS = 448
"""Size of the embedded model's vocabulary, which the tiny models share."""
IMAGE = 3
"""The id of `<image>` in it."""
TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": TOKENS, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 84, "projection_dim": 32, "initializer_range": 0.2,
}  # fmt: skip
"""A tower of 6 x 6 patches."""


def embedded_checkpoint(folder: Path) -> Path:
    """The embedded model in float32, its tower under the names that vLLM reads."""
    shutil.copytree(embedded.path(), folder, dirs_exist_ok=True)
    rename(folder)
    return folder


def llava_checkpoint(
    folder: Path, seed: int = 0, text: type[transformers.PreTrainedConfig] = transformers.LlamaConfig, **changes: Any
) -> Path:
    """A tiny random LLaVA-1.5 of 36 vision tokens an image, with the embedded model's tokenizer.

    Args:
        text: The kind of its decoder.
        changes: To the decoder's config.
    """
    config = transformers.LlavaConfig(
        text_config=text(**TEXT, **changes),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_seq_length=36,
    )
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration(config)
    save(model, folder)
    processor = json.loads((embedded.path() / "processor_config.json").read_text())
    processor["image_processor"] |= {"crop_size": {"height": 84, "width": 84}, "size": {"shortest_edge": 84}}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    rename(folder)
    return folder


def next_checkpoint(folder: Path, seed: int = 0) -> Path:
    """A tiny random LLaVA-NeXT whose views have 6 x 6 patches."""
    pinpoints = [[84, 168], [168, 84], [168, 168]]
    config = transformers.LlavaNextConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        image_grid_pinpoints=pinpoints,
    )
    torch.manual_seed(seed)
    save(transformers.LlavaNextForConditionalGeneration(config), folder)
    pictures = transformers.LlavaNextImageProcessor(
        size={"shortest_edge": 84}, crop_size={"height": 84, "width": 84}, image_grid_pinpoints=pinpoints
    )
    transformers.LlavaNextProcessor(
        pictures,
        transformers.AutoTokenizer.from_pretrained(folder),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    rename(folder)
    return folder


def save(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Write a random model and the embedded model's tokenizer; zeros and ones in it would hide mistakes."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1 or not weight.any():
                weight.add_(0.1 * torch.randn_like(weight))
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded.path() / name, folder / name)


def rename(folder: Path) -> None:
    """Tensors of a CLIP tower as older checkpoints call them: vLLM knows those alone."""
    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        inner = "vision_tower."
        if inner in name and f"{inner}vision_model." not in name:
            name = name.replace(inner, f"{inner}vision_model.")
        tensors[name] = tensor.contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
