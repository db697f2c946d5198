"""Tiny random models of three families. They need no download and are built in a tenth of a second."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from foveate.core.tensors import seeded
from foveate.errors import UnknownNameError

IMAGE, VIDEO, VISION_START, PAD = 91, 92, 93, 0
VOCABULARY = 96
DEPTH = 6
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 4096,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": PAD, "initializer_range": 0.2,
}  # fmt: skip
"""A decoder of six layers."""
CLIP = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 70, "projection_dim": 16, "initializer_range": 0.2,
}  # fmt: skip
"""A tower that makes 5 x 5 tokens from a picture."""
FAMILIES = ("llava", "llava_onevision", "qwen2_vl")
"""In this order: pictures of one size; tiles, newlines and videos; pictures of any size with M-RoPE."""

Picture = dict[str, Tensor]


@dataclass(frozen=True)
class TinyModel:
    """A tiny random model, and prompts for it.

    Attributes:
        family: The `model_type`.
        model: The transformers model, in float32 on the CPU.
        pieces: Makes a random picture ("i") or video ("v"): its tensors, and its ids in the prompt.
    """

    family: str
    model: Any
    pieces: Callable[[str, torch.Generator], tuple[Picture, Tensor]]

    def inputs(self, *words: str, seed: int = 0) -> dict[str, Any]:
        """Return a left-padded batch with one sample per word: "t" is three text tokens, "i" an image, "v" a video.

        A word gives the same sample alone and in any batch, for the same seed.
        """
        rows, pictures = [], []
        for word in words:
            rng = torch.Generator().manual_seed(1000 * seed + sum(map(ord, word)) + len(word))
            row = [torch.tensor([1])]
            for letter in word:
                if letter == "t":
                    row.append(torch.randint(2, 90, (3,), generator=rng))
                    continue
                picture, ids = self.pieces(letter, rng)
                pictures.append(picture)
                row.append(ids)
            rows.append(torch.cat(row))
        longest = max(map(len, rows))
        # Pad on the left: rows of 3 and 2 tokens -> ids [[5, 6, 7], [PAD, 8, 9]], mask [[1, 1, 1], [0, 1, 1]].
        ids = torch.stack([torch.cat((row.new_full((longest - len(row),), PAD), row)) for row in rows])
        mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        for name in dict.fromkeys(name for picture in pictures for name in picture):
            inputs[name] = torch.cat([picture[name] for picture in pictures if name in picture])
        if self.family == "qwen2_vl":
            inputs["mm_token_type_ids"] = (ids == IMAGE).long() + 2 * (ids == VIDEO).long()
        return inputs

    def generate(self, inputs: dict[str, Any], new_tokens: int = 4, **settings: Any) -> Any:
        """Generate greedily and return tokens and logits. Placeholders of pictures are never generated."""
        banned = [[IMAGE], [VIDEO], [VISION_START], [94]]
        return self.model.generate(
            **inputs, do_sample=False, max_new_tokens=new_tokens, bad_words_ids=banned, return_dict_in_generate=True,
            output_logits=True, **settings,
        )  # fmt: skip


@cache
def tiny_model(family: str = "llava", attention: str = "sdpa") -> TinyModel:
    """Return a tiny random model with six decoder layers and about 25 tokens per image. Models are cached.

    Args:
        family: "llava", "llava_onevision" or "qwen2_vl".
        attention: The attention kernel, "sdpa" or "eager".

    Raises:
        UnknownNameError: If there is no tiny model of the family.
    """
    if family not in BUILT:
        raise UnknownNameError(f"No tiny model of {family!r}. Choose one of: {', '.join(FAMILIES)}.")
    kind, config, pieces = BUILT[family]
    settings = config()
    settings._attn_implementation = attention
    with seeded(torch.device("cpu"), 0), torch.no_grad():
        model = getattr(transformers, kind)(settings).eval()
        for weight in model.parameters():  # zero weights and unit norms would hide misplaced rows
            if weight.dim() == 1 or not weight.any():
                weight.add_(0.1 * torch.randn_like(weight))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return TinyModel(family, model, pieces)


def _llava() -> Any:
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, vision_feature_layer=-2, image_seq_length=25,
    )  # fmt: skip


def _onevision() -> Any:
    tower = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**tower, vision_use_head=False),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-1,
        image_grid_pinpoints=[[70, 70], [70, 140], [140, 70], [140, 140]],
    )  # fmt: skip


def _qwen2_vl() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=94,
    )  # fmt: skip


def _square(letter: str, rng: torch.Generator) -> tuple[Picture, Tensor]:
    if letter == "v":
        raise UnknownNameError("llava does not read videos. Use llava_onevision or qwen2_vl.")
    return {"pixel_values": torch.randn(1, 3, 70, 70, generator=rng)}, torch.full((25,), IMAGE)


def _tile(letter: str, rng: torch.Generator) -> tuple[Picture, Tensor]:
    if letter == "v":  # three frames of 3 x 3 tokens, and a newline
        return {"pixel_values_videos": torch.randn(1, 3, 3, 70, 70, generator=rng)}, torch.full((28,), VIDEO)
    pixels = torch.randn(1, 2, 3, 70, 70, generator=rng)  # the base view and one tile, whose rows end in newlines
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[70, 70]])}, torch.full((25 + 5 * 6,), IMAGE)


def _patch(letter: str, rng: torch.Generator) -> tuple[Picture, Tensor]:
    grid = torch.tensor([[3, 4, 4]] if letter == "v" else [[1, 6, 8]])
    pixels = torch.randn(int(grid.prod()), 3 * 2 * 14 * 14, generator=rng)
    ids = torch.full((1 + int(grid.prod()) // 4,), VIDEO if letter == "v" else IMAGE)
    ids[0] = VISION_START
    if letter == "v":
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}, ids
    return {"pixel_values": pixels, "image_grid_thw": grid}, ids


BUILT: dict[str, tuple[str, Callable[[], Any], Callable[[str, torch.Generator], tuple[Picture, Tensor]]]] = {
    "llava": ("LlavaForConditionalGeneration", _llava, _square),
    "llava_onevision": ("LlavaOnevisionForConditionalGeneration", _onevision, _tile),
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", _qwen2_vl, _patch),
}


def words_of(family: str) -> Sequence[str]:
    """Return words for a batch: with one image, two, none, and a video if the family supports videos."""
    if family == "llava":
        return ("tit", "titt", "titit", "ttt")
    return ("tit", "titt", "titit", "ttt", "tvt")
