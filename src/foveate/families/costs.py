"""What towers and projectors cost, in FLOPs and in memory, from their configs alone."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from foveate.core.flops import attention, linear, vit_block
from foveate.core.grid import Grid
from foveate.errors import SettingError, UnsupportedError

__all__ = [
    "Counts",
    "Flops",
    "drops_cls",
    "gemma_cost",
    "glm_cost",
    "llava_bytes",
    "llava_cost",
    "picture_tokens",
    "pictures_in",
    "pixtral_cost",
    "pooled_cost",
    "qwen_bytes",
    "qwen_cost",
    "tiles_cost",
    "tower_picture",
    "windowed_cost",
]

Counts = tuple[int, ...]
"""A count for each image or video."""

Flops = tuple[int, int]
"""FLOPs of (tower, projector); a multiply-add counts two."""

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # the towers known here


# -- CLIP and SigLIP, and the projectors behind them ---------------------------------------------------------------


def drops_cls(config: Any) -> bool:
    """Whether the tower's first token is a CLS that the projector does not get. Where the config does not say, no CLS
    goes to the projector."""
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if strategy:
        return bool(strategy == "default")
    return bool(CLASS_TOKENS.get(config.vision_config.model_type))


def picture_tokens(config: Any, grid: Grid | None = None) -> int:
    """Vision tokens a LLaVA makes of one picture, or of one of a grid of patches, before it pools, unpads or adds
    newlines.

    Raises:
        UnsupportedError: If the tower is neither CLIP nor SigLIP.
    """
    return _tower_tokens(config.vision_config, grid) - int(drops_cls(config))


def pictures_in(sizes: Iterable[int], each: int, advice: str = "") -> int:
    """How many pictures of `each` vision tokens make images of these sizes.

    Raises:
        SettingError: If a size is no multiple of a picture's.
    """
    pictures = 0
    for size in sizes:
        if size % each:
            raise SettingError(
                f"A picture has {each} vision tokens in this model; {size} is not a multiple of that.{advice}"
            )
        pictures += size // each
    return pictures


def tower_picture(vision: Any, grid: Grid | None = None) -> int:
    """FLOPs of a CLIP or SigLIP tower on one picture, or on one of a grid of patches."""
    width, inner = vision.hidden_size, vision.intermediate_size
    tokens = _tower_tokens(vision, grid)
    patches = tokens - CLASS_TOKENS[vision.model_type]
    numbers = vision.num_channels * vision.patch_size**2  # of a patch's pixels
    flops: int = linear(patches, numbers, width)
    flops += vision.num_hidden_layers * vit_block(tokens, width, inner)
    if getattr(vision, "vision_use_head", False):
        # SigLIP's pooling head runs, though its output is not used: one query, and an MLP behind its attention.
        flops += linear(1, width, width) + linear(tokens, width, 2 * width)
        flops += attention(1, tokens, width)
        flops += linear(1, width, width) + linear(1, width, inner, width)
    return flops


def _tower_tokens(vision: Any, grid: Grid | None) -> int:
    """Rows of a picture in a CLIP or SigLIP tower, a CLS among them."""
    if vision.model_type not in CLASS_TOKENS:
        raise UnsupportedError(
            f"The cost of a tower of type {vision.model_type!r} is not known. Known: {', '.join(CLASS_TOKENS)}."
        )
    side: int = vision.image_size // vision.patch_size
    rows, columns = grid or (side, side)
    return rows * columns + CLASS_TOKENS[vision.model_type]


def llava_cost(config: Any, pictures: int, grid: Grid | None = None) -> Flops:
    """FLOPs of a LLaVA's (tower, projector) on `pictures` square pictures, or pictures of a grid of patches.

    transformers runs every layer of the tower, also those behind the feature layer.

    Raises:
        UnsupportedError: If the tower is neither CLIP nor SigLIP.
    """
    vision, width = config.vision_config, config.text_config.hidden_size
    inputs = vision.hidden_size * len(_feature_layers(config))
    projector = linear(picture_tokens(config, grid), inputs, width, width)
    return pictures * tower_picture(vision, grid), pictures * projector


def _feature_layers(config: Any) -> Sequence[int]:
    setting = config.vision_feature_layer
    return [setting] if isinstance(setting, int) else setting


def llava_bytes(config: Any, tokens: int, pictures: int, itemsize: int, copies: int = 2) -> tuple[int, int]:
    """Bytes of a LLaVA's pictures (while they are encoded, at the most; what stays until the decoder is through).

    What stays is the tower's output, the states that the projector read, and `copies` of the `tokens` vision tokens.
    """
    vision, width = config.vision_config, config.text_config.hidden_size
    last = vision.num_hidden_layers
    rows = pictures * _tower_tokens(vision, None)
    states = {layer % (last + 1) for layer in _feature_layers(config)}  # −1 is the last of last + 1 states
    # The output is a tensor of its own unless it is a state that is read; SigLIP's has been through a norm.
    output = vision.model_type == "siglip_vision_model" or last not in states
    kept = rows * vision.hidden_size * (len(states) + output)
    # While a block runs: its MLP, four states, and those that the projector reads from blocks before.
    mlp = _mlp_rows(vision.hidden_act) * vision.intermediate_size
    held = len(states - {0, last - 1, last})
    tower = rows * (mlp + (4 + held) * vision.hidden_size)
    projector = kept + (2 * pictures * picture_tokens(config) + tokens) * width
    stays = kept + copies * tokens * width
    return max(tower, projector) * itemsize, stays * itemsize


def _mlp_rows(activation: str) -> int:
    """How many rows of a two-layer MLP's inner width live at once: before and behind the activation, and inside."""
    return 3 if activation == "quick_gelu" else 2


def pooled_cost(config: Any, sizes: Sequence[int], pictures: Sequence[int], videos: Sequence[bool]) -> Flops:
    """As `llava_cost`, of pictures and of videos whose frames are pooled before the projector; a convolution counts
    with it."""
    tower, projector = llava_cost(config, sum(pictures))
    each, width = picture_tokens(config), config.vision_config.hidden_size
    for size, count, video in zip(sizes, pictures, videos, strict=True):
        if not video:
            continue
        patches = count * each
        one_token = llava_cost(config, count)[1] // patches
        projector -= one_token * (patches - size)
        if config.spatial_pool_mode == "conv":
            out = getattr(config, "spatial_pool_out_channels", width)
            projector += linear(size, config.spatial_pool_stride**2 * width, out)
    return tower, projector


def gemma_cost(config: Any, grids: Sequence[Grid | None]) -> Flops:
    """FLOPs of a Gemma 3's (tower, projector) on pictures of these grids of patches, or on square ones of the usual
    size; the projector makes as many tokens of each."""
    vision = config.vision_config
    tower = sum(tower_picture(vision, grid) for grid in grids)
    tokens = len(grids) * config.mm_tokens_per_image
    return tower, linear(tokens, vision.hidden_size, config.text_config.hidden_size)


# -- tiles ---------------------------------------------------------------------------------------------------------


def tiles_cost(vision: Any, grids: Iterable[Grid], block: int, has_cls: bool, widths: Sequence[int]) -> Flops:
    """FLOPs of (tower, projector) on tiles of these grids of tokens, each token a block of patches.

    Args:
        vision: The tower's config.
        grids: Rows and columns of each tile's tokens.
        block: Patches of a token's side.
        has_cls: Whether the tower has a CLS.
        widths: Of the projector's linear layers.
    """
    width = vision.hidden_size
    patch = vision.patch_size
    pixels = patch if isinstance(patch, int) else patch[0]  # of a patch's side
    tower = tokens = 0
    for rows, columns in grids:
        tokens += rows * columns
        patches = rows * columns * block**2
        tower += linear(patches, vision.num_channels * pixels**2, width)
        layer = vit_block(patches + int(has_cls), width, vision.intermediate_size)
        tower += vision.num_hidden_layers * layer
    return tower, linear(tokens, *widths)


# -- towers for pictures of any size -------------------------------------------------------------------------------


def qwen_cost(
    vision: Any,
    sizes: tuple[int, ...],
    pictures: tuple[int, ...],
    *,
    inner: int,
    out: int,
    mergers: int = 1,
    gated: bool = False,
) -> Flops:
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
        block = vit_block(patches, width, inner)
        if gated:
            block += linear(patches, width, inner)
        tower += count * (linear(patches, pixels, width) + vision.depth * block)
    merger = linear(sum(sizes), merged * width, merged * width, out)
    return tower, mergers * merger


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
    width = _width(vision)
    rows = tokens * vision.spatial_merge_size**2
    # Of one row, in bytes: where its query and key are turned, in the MLP, and what lives beside either.
    in_float32 = 0 if itemsize == 4 else 2 * width * 4
    turned = 5 * width * itemsize + in_float32 + 4 * width * 4
    gates = 3 if gated else _mlp_rows(vision.hidden_act)
    mlp = (3 * width + gates * inner) * itemsize
    beside = 4 * (2 * width // vision.num_heads + learned * width)
    deepstack = (mergers - 1) * tokens * out * itemsize
    tower = rows * (max(turned, mlp) + beside) + deepstack
    stays = rows * width + 2 * mergers * tokens * out
    return tower, stays * itemsize


def _width(vision: Any) -> int:
    """Width of a Qwen-VL's tower."""
    width: int = getattr(vision, "embed_dim", None) or vision.hidden_size
    return width


def windowed_cost(vision: Any, frames: Sequence[Grid], whole_blocks: Collection[int]) -> Flops:
    """As `qwen_cost`, of a Qwen2.5-VL, for the token grids of frames. All blocks except the `whole_blocks` look through
    windows."""
    inner, out, width = vision.intermediate_size, vision.out_hidden_size, vision.hidden_size
    sizes = tuple(rows * columns for rows, columns in frames)
    pictures = (1,) * len(sizes)
    tower, merger = qwen_cost(vision, sizes, pictures, inner=inner, out=out, gated=True)
    # As if all blocks saw the whole frame; so what windows save is taken off.
    windowed = sum(index not in whole_blocks for index in range(vision.depth))
    for grid, size in zip(frames, sizes, strict=True):
        patches = size * vision.spatial_merge_size**2
        frame = attention(patches, patches, width)
        windows = sum(attention(count, count, width) for count in _windows(vision, grid))
        tower -= windowed * (frame - windows)
    return tower, merger


def _windows(vision: Any, grid: Grid) -> list[int]:
    """Patches of each window of a grid of tokens: those at its edges are smaller."""
    merge = vision.spatial_merge_size
    side = vision.window_size // merge // vision.patch_size
    tall, wide = (_pieces(length, side) for length in grid)
    return [rows * columns * merge**2 for rows in tall for columns in wide]


def _pieces(length: int, side: int) -> list[int]:
    """A length cut in pieces of `side`, the last as long as what is left: 10 in pieces of 4 gives 4, 4, 2."""
    return [min(side, length - start) for start in range(0, length, side)]


def glm_cost(vision: Any, sizes: Counts, pictures: Counts) -> Flops:
    """As `qwen_cost`, of a GLM-4V: the blocks' MLP is as wide as the decoder, and the merger, after a convolution over
    2 x 2 patches, has one too."""
    width, out, inner = vision.hidden_size, vision.out_hidden_size, vision.intermediate_size
    group = vision.spatial_merge_size**2
    tower, _ = qwen_cost(vision, sizes, pictures, inner=out, out=out, gated=True)
    tokens = sum(sizes)
    convolution = linear(tokens, group * width, out, out)
    mlp = linear(tokens, out, 2 * inner) + linear(tokens, inner, out)  # gated
    return tower, convolution + mlp


def pixtral_cost(config: Any, sizes: Iterable[int]) -> Flops:
    """FLOPs of a Mistral 3's (tower, projector) on images of `sizes` vision tokens.

    Every patch is multiplied with those of all images, as without flash attention; what pads images to a common size
    is not counted.
    """
    vision, text = config.vision_config, config.text_config.hidden_size
    width, inner = vision.hidden_size, vision.intermediate_size
    block = config.spatial_merge_size**2
    tokens = sum(sizes)
    patches = tokens * block
    layer = vit_block(patches, width, inner)
    layer += linear(patches, width, inner)  # its MLP is gated
    tower = linear(patches, vision.num_channels * vision.patch_size**2, width)
    tower += vision.num_hidden_layers * layer
    return tower, linear(tokens, block * width, width, text, text)
