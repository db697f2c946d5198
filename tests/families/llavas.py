"""The LLaVAs' tiny models, of which no test is theirs alone."""

import inspect
from dataclasses import replace
from typing import Any

import torch
import transformers

from tests import tiny_others
from tests.tiny import CLIP, IMAGE, TEXT, VIDEO, Picture, Tiny, squares

SIGLIP = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
PLACES = {"image_token_index": IMAGE, "video_token_index": VIDEO}
PINPOINTS = [[70, 140], [140, 70], [140, 140], [210, 70], [70, 210]]


def clip(kind: str, **settings: Any) -> Any:
    """A config of a kind, with a Llama behind the tiny CLIP."""
    known = {"text_config": transformers.LlamaConfig(**TEXT), "vision_feature_layer": -2, **settings}
    return getattr(transformers, kind)(vision_config=transformers.CLIPVisionConfig(**CLIP), **known)


def llava() -> Any:
    return clip("LlavaConfig", image_token_index=IMAGE, image_seq_length=25)


def other_llava() -> Any:
    decoder = transformers.Qwen2Config(**tiny_others.text(7, 6, 3, 36))
    return transformers.LlavaConfig(
        text_config=decoder, vision_config=tiny_others.siglip(2, 3, 36, 9), image_token_index=VIDEO,
        vision_feature_layer=-1, vision_feature_select_strategy="full", multimodal_projector_bias=False,
    )  # fmt: skip


def vipllava() -> Any:
    return clip("VipLlavaConfig", image_token_index=IMAGE, vision_feature_layer=[-2, -3], image_seq_length=25)


def other_vipllava() -> Any:
    return transformers.VipLlavaConfig(
        text_config=transformers.LlamaConfig(**tiny_others.text(2, 5, 1, 40)),
        vision_config=transformers.CLIPVisionConfig(**tiny_others.tower(4, 2, 30, 10)), image_token_index=IMAGE,
        vision_feature_layer=(-1, 1, -3),
    )  # fmt: skip


def tiles(config: Any, count: int, rng: torch.Generator, shapes: Any = ((140, 90), (60, 140), (33, 200), (140, 140))):
    """A base view and up to four tiles, padded to five crops as a batch is; sizes differ, so token counts do."""
    sizes = torch.tensor(shapes)[torch.arange(count) % 4]
    side = config.vision_config.image_size
    pixels = torch.randn(count, 5, 3, side, side, generator=rng)
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, sizes, strict=True)]


def frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of three frames."""
    return [{"pixel_values_videos": one[None]} for one in torch.randn(count, 3, 3, 70, 70, generator=rng)]


def next_(text: Any = None) -> Any:
    text = text or transformers.MistralConfig(**TEXT, sliding_window=None)
    return clip("LlavaNextConfig", text_config=text, image_token_index=IMAGE, image_grid_pinpoints=PINPOINTS)


def other_next() -> Any:
    return transformers.LlavaNextConfig(
        text_config=transformers.MistralConfig(**tiny_others.text(5, 3, 3, 48), head_dim=10, sliding_window=17),
        vision_config=transformers.CLIPVisionConfig(**tiny_others.tower(4, 1, 36, 9)), image_token_index=IMAGE,
        vision_feature_layer=[-2, 1], image_grid_pinpoints=[[72, 108], [108, 72], [36, 36], [36, 144]],
    )  # fmt: skip


def next_video(**settings: Any) -> Any:
    return clip("LlavaNextVideoConfig", image_grid_pinpoints=PINPOINTS, **PLACES, **settings)


def other_next_video() -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config=transformers.Qwen3Config(**tiny_others.text(2, 4, 1, 24), head_dim=12),
        vision_config=tiny_others.siglip(3, 2, 49, 7), vision_feature_layer=1, vision_feature_select_strategy="full",
        image_grid_pinpoints=[[49, 98], [98, 98]], spatial_pool_stride=3, spatial_pool_mode="conv", **PLACES,
    )  # fmt: skip


def onevision() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**SIGLIP, vision_use_head=False), vision_feature_layer=-1,
        image_grid_pinpoints=[[70, 70], [70, 140], [140, 70], [140, 140]], **PLACES,
    )  # fmt: skip


def onevision_tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    return tiles(config, count, rng, ((140, 90), (70, 70), (60, 140), (140, 140)))


def other_onevision() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**tiny_others.text(9, 2, 2, 28)),
        vision_config=tiny_others.siglip(4, 1, 42, 14), vision_feature_layer=-2, vision_aspect_ratio="anyres_max_2",
        image_grid_pinpoints=[[42, 126], [126, 126], [84, 42]], **PLACES,
    )  # fmt: skip


def video_llava() -> Any:
    return clip("VideoLlavaConfig", **PLACES)


def video_llava_pictures(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Pictures of one size, by the name this version of transformers has for them."""
    known = inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward).parameters
    name = "pixel_values" if "pixel_values" in known else "pixel_values_images"
    return [{name: picture["pixel_values"]} for picture in squares(config, count, rng)]


def other_video_llava() -> Any:
    return transformers.VideoLlavaConfig(
        text_config=transformers.LlamaConfig(**tiny_others.text(8, 1, 1, 20), head_dim=14, attention_bias=True),
        vision_config=transformers.CLIPVisionConfig(**tiny_others.tower(2, 3, 28, 7)), vision_feature_layer=[1, -1],
        **PLACES,
    )  # fmt: skip


TINY = {
    "llava": Tiny(llava, "LlavaForConditionalGeneration", squares),
    "vipllava": Tiny(vipllava, "VipLlavaForConditionalGeneration", squares),
    "llava_next": Tiny(next_, "LlavaNextForConditionalGeneration", tiles),
    "llava_next_video": Tiny(next_video, "LlavaNextVideoForConditionalGeneration", tiles, frames),
    "llava_onevision": Tiny(onevision, "LlavaOnevisionForConditionalGeneration", onevision_tiles, frames),
    "video_llava": Tiny(video_llava, "VideoLlavaForConditionalGeneration", video_llava_pictures, frames),
}
OTHER = {
    "llava": replace(TINY["llava"], config=other_llava, ids=lambda picture, length: torch.full((length,), VIDEO)),
    "vipllava": replace(TINY["vipllava"], config=other_vipllava),
    "llava_next": replace(
        TINY["llava_next"], config=other_next, pictures=tiny_others.tiles, window=lambda layer: 17,
        sees=tiny_others.behind(lambda layer: 17),
    ),
    "llava_next_video": replace(
        TINY["llava_next_video"], config=other_next_video, pictures=tiny_others.tiles, videos=tiny_others.frames(2)
    ),
    "llava_onevision": replace(
        TINY["llava_onevision"], config=other_onevision, pictures=tiny_others.tiles, videos=tiny_others.frames(4)
    ),
    "video_llava": replace(TINY["video_llava"], config=other_video_llava, videos=tiny_others.frames(2)),
}  # fmt: skip
