"""The models of the tests: foveate's embedded model, and tiny random ones."""

import importlib
import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.llava import Model, ModelConfig, TextConfig, VisionConfig

from foveate import embedded

IMAGE, VIDEO = 101, 102
TEXT = {
    "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 128,
}  # fmt: skip


def embedded_weights() -> dict[str, mx.array]:
    """The weights of foveate's embedded model in float32, by the names of mlx-vlm."""
    weights = mx.load(str(embedded.path() / "model.safetensors"))
    names = {name: name.replace("vision_tower.", "vision_tower.vision_model.") for name in weights}
    return {names[name]: value.astype(mx.float32) for name, value in weights.items()}


def embedded_config() -> dict[str, Any]:
    """Its config, as mlx-vlm reads it."""
    config: dict[str, Any] = json.loads((embedded.path() / "config.json").read_text())
    text = config["text_config"]
    text["rope_theta"] = text["rope_parameters"]["rope_theta"]
    return config | {"eos_token_id": text["eos_token_id"]}


def embedded_model() -> Any:
    """foveate's embedded model in mlx-vlm's LLaVA, in float32."""
    config = embedded_config()
    text, vision = TextConfig.from_dict(config["text_config"]), VisionConfig.from_dict(config["vision_config"])
    model = Model(ModelConfig.from_dict(config | {"text_config": text, "vision_config": vision}))
    weights = embedded_weights()
    for name in weights:
        if name.endswith("patch_embedding.weight"):
            weights[name] = weights[name].transpose(0, 2, 3, 1)
    model.load_weights(list(weights.items()), strict=True)
    for layer in model.vision_tower.vision_model.encoder.layers:
        layer.mlp.activation_fn = nn.GELU(approx="tanh")  # mlx-vlm's CLIP is always quick_gelu
    mx.eval(model.parameters())
    return model


def embedded_folder(folder: Path, layers: int | None = None) -> Path:
    """Write the embedded model, or some of its decoder's layers, as mlx-vlm loads it."""
    for file in embedded.path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config, weights = embedded_config(), embedded_weights()
    if layers is not None:
        config["text_config"]["num_hidden_layers"] = layers
        later = re.compile(r"language_model\..*layers\.(\d+)\.")
        numbers = {name: int(match[1]) for name in weights if (match := later.search(name))}
        weights = {name: value for name, value in weights.items() if numbers.get(name, 0) < layers}
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    return folder


def _qwen(name: str, vision: dict[str, Any], text: dict[str, Any]) -> Any:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_vlm.models.{name}")
    rope = {"tie_word_embeddings": False, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    sizes = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32, "num_heads": 2, "patch_size": 4,
        "spatial_patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = module.ModelConfig(
        text_config=module.TextConfig(model_type=name, **TEXT | rope | text),
        vision_config=module.VisionConfig.from_dict(sizes | vision),
        model_type=name, image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=103, vocab_size=128,
    )  # fmt: skip
    config.vision_end_token_id = 104
    for kind in ("image", "video"):
        if hasattr(config, f"{kind}_token_index"):
            setattr(config, f"{kind}_token_index", getattr(config, f"{kind}_token_id"))
    model = module.Model(config)
    mx.eval(model.parameters())
    return model


def qwen2_5_vl() -> Any:
    return _qwen("qwen2_5_vl", {"window_size": 16, "fullatt_block_indexes": [1]}, {})


def qwen2_vl() -> Any:
    return _qwen("qwen2_vl", {"embed_dim": 32, "hidden_size": 32}, {})


def qwen3_vl() -> Any:
    """With deepstack features."""
    text = {"head_dim": 8, "rope_theta": 1e4, "max_position_embeddings": 512}
    return _qwen("qwen3_vl", {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}, text)


def qwen_inputs(grids: list[tuple[int, int, int]], seed: int = 1, medium: str = "image") -> tuple[Any, Any, Any]:
    """A prompt with an image or a video of each grid: ids, pixels of images, and the other arguments."""
    ids, patches = [5, 6], 0
    for time, height, width in grids:
        ids += [103, *[IMAGE if medium == "image" else VIDEO] * (time * height * width // 4), 104, 7]
        patches += time * height * width
    pixels = mx.random.normal((patches, 3 * 2 * 4 * 4), key=mx.random.key(seed))
    inputs = {f"{medium}_grid_thw": mx.array(grids)}
    if medium == "image":
        return mx.array([[*ids, 8, 9, 10]]), pixels, inputs
    return mx.array([[*ids, 8, 9, 10]]), None, inputs | {"pixel_values_videos": pixels}


def gemma3() -> Any:
    """With windows of twelve columns in every second layer."""
    module = importlib.import_module("mlx_vlm.models.gemma3")
    mx.random.seed(0)
    more = {"head_dim": 8, "sliding_window": 12, "sliding_window_pattern": 2, "mm_tokens_per_image": 16}
    text = module.TextConfig(model_type="gemma3_text", **TEXT | more)
    vision = module.VisionConfig(
        model_type="siglip_vision_model", num_hidden_layers=2, hidden_size=16, intermediate_size=24,
        num_attention_heads=2, patch_size=4, image_size=32,
    )  # fmt: skip
    model = module.Model(
        module.ModelConfig(text, vision, "gemma3", vocab_size=128, image_token_index=IMAGE, hidden_size=32)
    )
    mx.eval(model.parameters())
    return model


def _tiled(name: str) -> Any:
    mx.random.seed(0)
    module = importlib.import_module(f"mlx_vlm.models.{name}")
    text = module.TextConfig(model_type="llama", **TEXT)
    vision = module.VisionConfig(
        model_type="idefics3", hidden_size=16, num_attention_heads=2, patch_size=4, num_hidden_layers=2,
        intermediate_size=24, image_size=32,
    )  # fmt: skip
    model = module.Model(module.ModelConfig(text, vision, name, vocab_size=128, image_token_id=IMAGE))
    mx.eval(model.parameters())
    return model


def idefics3() -> Any:
    return _tiled("idefics3")


def smolvlm() -> Any:
    return _tiled("smolvlm")


def mistral3() -> Any:
    """With text between the rows of a picture."""
    mx.random.seed(0)
    module = importlib.import_module("mlx_vlm.models.mistral3")
    vision = importlib.import_module("mlx_vlm.models.pixtral").VisionConfig(
        num_hidden_layers=2, hidden_size=16, head_dim=8, intermediate_size=24, num_attention_heads=2, patch_size=4,
        image_size=32,
    )  # fmt: skip
    rope = {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4, "type": "default"}}
    text = module.TextConfig("mistral", **TEXT | rope, head_dim=8)
    model = module.Model(module.ModelConfig(text, vision, "mistral3", image_token_index=IMAGE, vocab_size=128))
    mx.eval(model.parameters())
    return model


def llava() -> Any:
    mx.random.seed(0)
    text = TextConfig("llama", **{name: TEXT[name] for name in TEXT if name != "rms_norm_eps"})
    vision = VisionConfig(
        "clip_vision_model", num_hidden_layers=3, hidden_size=16, intermediate_size=24, num_attention_heads=2,
        image_size=28, patch_size=7, projection_dim=16,
    )  # fmt: skip
    model = Model(ModelConfig(text, vision, "llava", image_token_index=IMAGE, vocab_size=128))
    mx.eval(model.parameters())
    return model


def run_inputs(make: Any) -> tuple[Any, Any, Any]:
    """A prompt of a model without M-RoPE: one run of 16 tokens, four rows (Mistral 3), or two tiles."""
    if make is mistral3:
        row = [IMAGE] * 4
        ids, pixels = (
            [1, 5, *row, 3, *row, 3, *row, 3, *row, 4, 7, 8],
            mx.random.normal((1, 3, 32, 32), key=mx.random.key(1)),
        )
        return mx.array([ids]), pixels, {"image_sizes": mx.array([[32, 32]])}
    tiles = make in (idefics3, smolvlm)
    ids = [1, 5, *[IMAGE] * 16, *([6, *[IMAGE] * 16] if tiles else []), 7, 8]
    side = 28 if make is llava else 32
    shape = (1, 2, 3, side, side) if tiles else (1, 3, side, side)
    return mx.array([ids]), mx.random.normal(shape, key=mx.random.key(1)), {}


QWEN = [qwen2_vl, qwen2_5_vl, qwen3_vl]
"""Models with M-RoPE."""
RUNS = [llava, gemma3, idefics3, smolvlm, mistral3]
"""Models whose positions are the places in the cache."""


def inputs_of(make: Any) -> tuple[Any, Any, Any]:
    """A prompt with pictures."""
    return qwen_inputs([(1, 8, 8), (1, 8, 12)]) if make in QWEN else run_inputs(make)
