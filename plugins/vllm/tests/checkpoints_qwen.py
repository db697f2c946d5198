"""Folders that vLLM loads: tiny random Qwen2.5-VL and Qwen3-VL, with the embedded model's tokenizer."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from foveate import embedded
from tests.checkpoints import TEXT, save

__all__ = ["FILM", "GLM_MARK", "MARK", "NAMES", "experts_as_on_the_hub", "qwen_checkpoint", "tokenizer_with_marks"]

MARK = "<|vision_start|><|image_pad|><|vision_end|>"
"""What stands for an image in a prompt."""
FILM = "<|vision_start|><|video_pad|><|vision_end|>"
"""The same for a film."""
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
GLM = {
    "image_start_token_id": "<|begin_of_image|>", "image_token_id": "<|image|>",
    "image_end_token_id": "<|end_of_image|>", "video_start_token_id": "<|begin_of_video|>",
    "video_token_id": "<|video|>", "video_end_token_id": "<|end_of_video|>",
}  # fmt: skip
"""What a GLM puts around pictures and films."""
GLM_MARK = "".join([*GLM.values()][:3])
SIDE = 4
"""The text's heads stand for four times two axes and the time: head size 32."""


def tokenizer_with_marks() -> Any:
    """The embedded model's tokenizer, and what Qwen puts around pictures."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedded.path())
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    return tokenizer


def qwen_checkpoint(name: str, folder: Path, seed: int = 0) -> Path:
    """A tiny random model: "qwen2_5_vl" or "qwen3_vl". A picture has a token for each 28 (32) pixels of a side."""
    torch.manual_seed(seed)
    tokenizer = tokenizer_with_marks()
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(list(MARKS)), strict=True))
    marks = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    text = {**TEXT, "vocab_size": len(tokenizer) + len(tokenizer) % 2}
    model, processor = BUILT[name](text, marks, tokenizer)
    save(model, folder)
    processor.save_pretrained(folder)
    return folder


def _qwen2_5_vl(text: dict[str, Any], marks: dict[str, int], tokenizer: Any) -> tuple[Any, Any]:
    config = transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": _rope()},
        vision_config={
            "depth": 4, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
            "fullatt_block_indexes": [0, 2], "window_size": 56, "initializer_range": 0.2,
        },
        initializer_range=0.2, tie_word_embeddings=False, **marks,
    )  # fmt: skip
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=_size(28)),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(size=_size(28)),
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config), processor


VISION3 = {
    "depth": 4, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
    "num_position_embeddings": 64, "patch_size": 16, "initializer_range": 0.2,
}  # fmt: skip


def _qwen3_vl(text: dict[str, Any], marks: dict[str, int], tokenizer: Any) -> tuple[Any, Any]:
    config = transformers.Qwen3VLConfig(
        text_config={**text, "rope_parameters": {**_rope(), "mrope_interleaved": True}},
        vision_config={**VISION3, "deepstack_visual_indexes": [0, 1, 2]},
        initializer_range=0.2, tie_word_embeddings=False, **marks,
    )  # fmt: skip
    image_processor = transformers.Qwen2VLImageProcessor(
        size=_size(32), patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = transformers.Qwen3VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(size=_size(32)),
    )
    return transformers.Qwen3VLForConditionalGeneration(config), processor


def _rope() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [SIDE, 6, 6]}


def _size(token: int) -> dict[str, int]:
    """Pixels that pictures are kept within: 4 to 120 tokens of `token` x `token`."""
    return {"shortest_edge": 4 * token**2, "longest_edge": 120 * token**2}


def experts_as_on_the_hub(folder: Path) -> None:
    """Turn a saved model's experts as vLLM reads them: inputs first, which transformers saves the other way."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def _qwen2_vl(text: dict[str, Any], marks: dict[str, int], tokenizer: Any) -> tuple[Any, Any]:
    _, processor = _qwen2_5_vl(text, marks, tokenizer)
    config = transformers.Qwen2VLConfig(
        text_config={**text, "rope_parameters": _rope()},
        vision_config={"depth": 4, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        tie_word_embeddings=False, **marks,
    )  # fmt: skip
    processor = transformers.Qwen2VLProcessor(
        image_processor=processor.image_processor, tokenizer=tokenizer, video_processor=processor.video_processor
    )
    return transformers.Qwen2VLForConditionalGeneration(config), processor


def _qwen3_vl_moe(text: dict[str, Any], marks: dict[str, int], tokenizer: Any) -> tuple[Any, Any]:
    _, processor = _qwen3_vl(text, marks, tokenizer)
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [3]}
    experts["norm_topk_prob"] = True  # which vLLM reads, and transformers leaves out
    config = transformers.Qwen3VLMoeConfig(
        text_config={**text, **experts, "rope_parameters": {**_rope(), "mrope_interleaved": True}},
        vision_config={**VISION3, "deepstack_visual_indexes": [1]},
        tie_word_embeddings=False, **marks,
    )  # fmt: skip
    return transformers.Qwen3VLMoeForConditionalGeneration(config), processor


def _glm4v(text: dict[str, Any], marks: dict[str, int], tokenizer: Any) -> tuple[Any, Any]:
    _, processor = _qwen2_5_vl(text, marks, tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [*MARKS, *GLM.values()]})
    ids = dict(zip(GLM, tokenizer.convert_tokens_to_ids([*GLM.values()]), strict=True))
    rope = {**_rope(), "partial_rotary_factor": 1.0}
    config = transformers.Glm4vConfig(
        text_config={**text, "vocab_size": len(tokenizer) + len(tokenizer) % 2, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 32, "out_hidden_size": 64, "num_heads": 2, "intermediate_size": 48,
            "image_size": 84, "initializer_range": 0.2,
        },
        tie_word_embeddings=False, **ids,
    )  # fmt: skip
    processor = transformers.Glm4vProcessor(
        image_processor=transformers.Glm4vImageProcessor(size=_size(28)),
        tokenizer=tokenizer,
        video_processor=transformers.Glm4vVideoProcessor(size=_size(28)),
    )
    return transformers.Glm4vForConditionalGeneration(config), processor


BUILT = {
    "glm4v": _glm4v,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl_moe": _qwen3_vl_moe,
}
NAMES = ("qwen2_5_vl", "qwen3_vl")
