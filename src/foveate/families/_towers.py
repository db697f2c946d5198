"""What towers and projectors that several families share cost, in FLOPs and in memory, from their configs alone."""

from typing import Any

from foveate.core.flops import attention, linear, vit_block
from foveate.core.grid import Grid
from foveate.errors import UnsupportedError

__all__ = ["drops_cls", "llava_bytes", "llava_cost", "picture_tokens", "qwen_bytes", "qwen_cost", "tower_picture"]

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # the towers known here


def picture_tokens(config: Any, grid: Grid | None = None) -> int:
    """Vision tokens a LLaVA makes of one picture, or of one of a grid of patches, before it pools, unpads or adds
    newlines.

    Raises:
        UnsupportedError: If the tower is neither CLIP nor SigLIP.
    """
    return _tower_tokens(config.vision_config, grid) - int(drops_cls(config))


def drops_cls(config: Any) -> bool:
    """Whether the tower's first token is a CLS that the projector does not get; where the config does not say, it gets
    none."""
    strategy = getattr(config, "vision_feature_select_strategy", None)
    return strategy == "default" if strategy else bool(CLASS_TOKENS.get(config.vision_config.model_type))


def llava_cost(config: Any, pictures: int, grid: Grid | None = None) -> tuple[int, int]:
    """FLOPs of a LLaVA's (tower, projector) on so many square pictures, or pictures of a grid of patches.

    transformers runs every layer of the tower, also those behind the feature layer.

    Raises:
        UnsupportedError: If the tower is neither CLIP nor SigLIP.
    """
    vision, width = config.vision_config, config.text_config.hidden_size
    features = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    projector = linear(picture_tokens(config, grid), vision.hidden_size * features, width, width)
    return pictures * tower_picture(vision, grid), pictures * projector


def llava_bytes(config: Any, tokens: int, pictures: int, itemsize: int, copies: int = 2) -> tuple[int, int]:
    """Bytes of a LLaVA's pictures (while they are encoded, at the most; what stays until the decoder is through).

    What stays is the tower's output, the states that the projector read, and `copies` of the `tokens` vision tokens.
    """
    vision, width = config.vision_config, config.text_config.hidden_size
    rows, last, given = pictures * _tower_tokens(vision, None), vision.num_hidden_layers, config.vision_feature_layer
    read = {layer % (last + 1) for layer in ([given] if isinstance(given, int) else given)}
    output = vision.model_type == "siglip_vision_model" or last not in read  # SigLIP's has been through a norm
    kept = rows * vision.hidden_size * (len(read) + output)
    block = _mlp_rows(vision.hidden_act) * vision.intermediate_size + 4 * vision.hidden_size
    tower = rows * (block + len(read - {0, last - 1, last}) * vision.hidden_size)
    projector = kept + (2 * pictures * picture_tokens(config) + tokens) * width
    return max(tower, projector) * itemsize, (kept + copies * tokens * width) * itemsize


def qwen_bytes(
    vision: Any,
    tokens: int,
    itemsize: int,
    *,
    inner: int,
    out: int,
    mergers: int = 1,
    gated: bool = False,
    learned: bool = False,
) -> tuple[int, int]:
    """As `llava_bytes`, of a Qwen-VL's pictures; further arguments as in `qwen_cost`.

    Queries and keys are turned by RoPE in float32, as are `learned` positions, which outlive the blocks.
    """
    width, rows = _width(vision), tokens * vision.spatial_merge_size**2
    turned = 5 * width * itemsize + (0 if itemsize == 4 else 2 * width * 4) + 4 * width * 4
    mlp = (3 * width + (3 if gated else _mlp_rows(vision.hidden_act)) * inner) * itemsize
    beside = 4 * (2 * width // vision.num_heads + learned * width)
    tower = rows * (max(turned, mlp) + beside) + (mergers - 1) * tokens * out * itemsize
    return tower, (rows * width + 2 * mergers * tokens * out) * itemsize


def _width(vision: Any) -> int:
    """Width of a Qwen-VL's tower."""
    width: int = getattr(vision, "embed_dim", None) or vision.hidden_size
    return width


def _mlp_rows(activation: str) -> int:
    """How many rows of a two-layer MLP's inner width live at once: before and behind the activation, and inside."""
    return 3 if activation == "quick_gelu" else 2


def qwen_cost(
    vision: Any,
    sizes: tuple[int, ...],
    pictures: tuple[int, ...],
    *,
    inner: int,
    out: int,
    mergers: int = 1,
    gated: bool = False,
) -> tuple[int, int]:
    """FLOPs of a Qwen-VL's (tower, mergers) on images of `sizes` vision tokens, each of so many temporal patches.

    A patch attends to those of its own temporal patch. `inner` is the width of the blocks' MLP, which may be gated,
    `out` that of the merged tokens.
    """
    merged = vision.spatial_merge_size**2
    width = _width(vision)
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    tower = 0
    for size, count in zip(sizes, pictures, strict=True):
        patches = size // count * merged
        block = vit_block(patches, width, inner) + gated * linear(patches, width, inner)
        tower += count * (linear(patches, pixels, width) + vision.depth * block)
    merger = linear(sum(sizes), merged * width, merged * width, out)
    return tower, mergers * merger


def _tower_tokens(vision: Any, grid: Grid | None) -> int:
    """Rows of a picture in a CLIP or SigLIP tower."""
    if vision.model_type not in CLASS_TOKENS:
        raise UnsupportedError(
            f"What a tower of type {vision.model_type!r} costs is not known; known are {', '.join(CLASS_TOKENS)}."
        )
    side: int = vision.image_size // vision.patch_size
    rows, columns = grid or (side, side)
    return rows * columns + CLASS_TOKENS[vision.model_type]


def tower_picture(vision: Any, grid: Grid | None = None) -> int:
    """FLOPs of a CLIP or SigLIP tower on one picture."""
    tokens, width, inner = _tower_tokens(vision, grid), vision.hidden_size, vision.intermediate_size
    patches = tokens - CLASS_TOKENS[vision.model_type]
    flops: int = linear(patches, vision.num_channels * vision.patch_size**2, width)
    flops += vision.num_hidden_layers * vit_block(tokens, width, inner)
    if getattr(vision, "vision_use_head", False):  # SigLIP's pooling head runs, though nobody reads it
        flops += linear(1, width, width) + linear(tokens, width, 2 * width)
        flops += attention(1, tokens, width) + linear(1, width, width) + linear(1, width, inner, width)
    return flops
