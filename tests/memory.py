"""Bytes that live at once in a prefill, counted tensor by tensor: what a kernel takes inside itself is not seen."""

from contextlib import nullcontext

import torch
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip import CLIPVisionConfig

import foveate as fv
from foveate.methods.mustdrop import MustDrop
from foveate.methods.visiondrop import VisionDrop
from tests.bench.counting import Memory
from tests.models import IMAGE, PAD

BEFORE, AFTER = 35, 20  # tokens of text


def text_config(kind, width, layers):
    return kind(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, max_position_embeddings=32768, pad_token_id=PAD,
    )  # fmt: skip


def vision_settings(side, width):
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 2,
        "patch_size": 14, "image_size": side,
    }  # fmt: skip


def llava(side, width=32, tower=16, layers=6):
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=text_config(LlamaConfig, width, layers),
        vision_config=CLIPVisionConfig(**vision_settings(side, tower)),
        image_token_index=IMAGE, image_seq_length=(side // 14) ** 2,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval(), prompt((side // 14) ** 2, torch.randn(1, 3, side, side))


def onevision(side, width=32, tower=16, layers=6):
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        text_config=text_config(Qwen2Config, width, layers),
        vision_config=SiglipVisionConfig(**vision_settings(side, tower), vision_use_head=False),
        image_token_index=IMAGE, vision_feature_layer=-1, image_grid_pinpoints=[[side, side]],
    )  # fmt: skip
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    pictures = {"pixel_values": torch.randn(1, 2, 3, side, side), "image_sizes": torch.tensor([[side, side]])}
    with torch.no_grad():
        count = len(model.model.get_image_features(**pictures).pooler_output[0])
    return model, {**prompt(count, pictures["pixel_values"]), "image_sizes": pictures["image_sizes"]}


def prompt(vision, pixels):
    ids = torch.cat((torch.full((BEFORE,), 7), torch.full((vision,), IMAGE), torch.full((AFTER,), 8)))[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def watched(model, inputs, method):
    context = nullcontext() if method is None else fv.drop(model, method)
    with torch.no_grad(), context, Memory() as watch:
        model(**inputs, use_cache=True)
    return watch


METHODS = {
    "visiondrop": VisionDrop(
        dominant=400, contextual=60, layer_list=(2, 4), image_token_list=((300, 40), (200, 30)), reference=576
    ),
    "visiondrop, decoder alone": VisionDrop(
        dominant=0, contextual=0, layer_list=(2, 4), image_token_list=((300, 40), (200, 30)), reference=576
    ),
    "visiondrop, both ways": VisionDrop(
        dominant=0, contextual=0, layer_list=(2,), image_token_list=((300, 0),), bidirectional=True, positions="keep"
    ),
    "mustdrop": MustDrop(pruning_layers=(1, 3), global_thr=0.0005, individual_thr=0.0005),
    "v2drop": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)),
}
CONTROLS = {
    "random": fv.Random(layers=(2, 4), keep=(0.5, 0.5)),
    "uniform": fv.Uniform(layers=(2, 4), keep=(0.5, 0.5)),
    "averagepool": fv.AveragePool(keep=0.4),
    "resize": fv.Resize(keep=0.4),
}
