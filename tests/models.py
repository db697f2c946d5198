"""Tiny random models of every family, and mixed batches for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

IMAGE, VIDEO, PAD = 91, 92, 0
VOCABULARY = 96
DEPTH = 6
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": PAD, "initializer_range": 0.2,
}  # fmt: skip
CLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 70, "projection_dim": 16, "initializer_range": 0.2,
}  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """One family's tiny model: how to build it and how to picture its images."""

    config: Callable[[], Any]
    kind: str
    pictures: Callable[[Any, int, torch.Generator], dict[str, Any]]


def llava_config() -> Any:
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, vision_feature_layer=-2, image_seq_length=25,
    )  # fmt: skip


def onevision_config() -> Any:
    tower = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**tower, vision_use_head=False),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-1,
        image_grid_pinpoints=[[70, 70], [70, 140], [140, 70], [140, 140]],
    )  # fmt: skip


def qwen2_config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=93, vision_end_token_id=94,
    )  # fmt: skip


def qwen3_config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=93, vision_end_token_id=94,
    )  # fmt: skip


def squares(config: Any, count: int, rng: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": torch.randn(count, 3, 70, 70, generator=rng)}


def tiles(config: Any, count: int, rng: torch.Generator) -> dict[str, Any]:
    """Base view and up to four tiles; sizes differ, so token counts do."""
    sizes = torch.tensor([[140, 90], [70, 70], [60, 140], [140, 140]])[torch.arange(count) % 4]
    return {"pixel_values": torch.randn(count, 5, 3, 70, 70, generator=rng), "image_sizes": sizes}


def patches(config: Any, count: int, rng: torch.Generator) -> dict[str, Any]:
    grids = torch.tensor([[1, 4, 6], [1, 6, 6], [1, 2, 4], [1, 8, 4]])[torch.arange(count) % 4]
    vision = config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(int(grids.prod(-1).sum()), width, generator=rng),
        "image_grid_thw": grids,
    }


TINY = {
    "llava": Tiny(llava_config, "LlavaForConditionalGeneration", squares),
    "llava_onevision": Tiny(onevision_config, "LlavaOnevisionForConditionalGeneration", tiles),
    "qwen2_vl": Tiny(qwen2_config, "Qwen2VLForConditionalGeneration", patches),
    "qwen3_vl": Tiny(qwen3_config, "Qwen3VLForConditionalGeneration", patches),
}
FAMILIES = sorted(TINY)


@cache
def tiny(family: str, attention: str = "sdpa") -> Any:
    """A tiny random model, its weights the same for every attention."""
    torch.manual_seed(0)
    config = TINY[family].config()
    config._attn_implementation = attention if attention in ("sdpa", "eager") else "sdpa"
    model = getattr(transformers, TINY[family].kind)(config).eval()
    model.config.get_text_config()._attn_implementation = attention  # a name of our own passes no validation
    with torch.no_grad():  # zero biases and unit norms would hide wrong gathers
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def batch(family: str, samples: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """A left-padded batch.

    Args:
        family: Which model it is for.
        samples: A word a sample, a letter a piece: "t" is three text tokens, "i" an image.
        seed: Which texts and pictures. A sample has the same ones alone and in any batch.
    """
    rows, pictures = [], []
    for word in samples:
        row, found = _sample(family, word, seed)
        rows.append(row)
        pictures.extend(found)
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((row.new_full((longest - len(row),), PAD), row)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name in pictures[0] if pictures else ():
        inputs[name] = torch.cat([picture[name] for picture in pictures])
    if family.startswith("qwen"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).long()
    return inputs


@cache
def _sample(family: str, word: str, seed: int) -> tuple[Tensor, list[dict[str, Any]]]:
    rng = torch.Generator().manual_seed(1000 * seed + sum(map(ord, word)) + len(word))
    model, config = tiny(family), TINY[family].config()
    count = word.count("i")
    everything = TINY[family].pictures(config, count, rng) if count else {}
    lengths, pictures = [], []
    if count:
        with torch.no_grad():
            lengths = [len(one) for one in model.model.get_image_features(**everything).pooler_output]
        if "image_grid_thw" in everything:
            sizes = everything["image_grid_thw"].prod(-1).tolist()
            pixels = everything["pixel_values"].split(sizes)
            pictures = [
                {"pixel_values": part, "image_grid_thw": grid[None]}
                for part, grid in zip(pixels, everything["image_grid_thw"], strict=True)
            ]
        else:
            pictures = [{name: value[i : i + 1] for name, value in everything.items()} for i in range(count)]
    pieces, left = [torch.tensor([1])], iter(lengths)
    for letter in word:
        if letter == "i":
            pieces.append(torch.full((next(left),), IMAGE))
        else:
            pieces.append(torch.randint(2, 90, (3,), generator=rng))
    return torch.cat(pieces), pictures


MIXED = ("titt", "titit", "ttttt", "tit")
NO_PLACEHOLDERS = {"bad_words_ids": [[IMAGE], [VIDEO], [93], [94]]}  # a random model would draw them


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = 6, **settings: Any) -> Any:
    """Greedy tokens and logits without placeholders among the new ones."""
    settings = {"do_sample": False, "max_new_tokens": new_tokens, **NO_PLACEHOLDERS, **settings}
    return model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
