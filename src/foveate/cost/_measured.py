"""Measure a model's FLOPs: run it without weights at several lengths, count matrix products, and fit a formula."""

import copy
import inspect
import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from foveate._transformers import with_cache
from foveate.core.patching import Patcher
from foveate.cost._tower import TowerFlops
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.feeding import blocks_of
from foveate.plain.upstream import first_line
from foveate.registry import family_kind

ROWS = (24, 40, 88)
"""Lengths of the prompts that are run. None is a multiple of 64, to detect the rounding up to whole chunks, and the
last one has two chunks."""

CHUNK = 64
"""Rows per chunk of the gated delta rule, which computes whole chunks only."""

VIEWS = 64
"""Tiles provided for a picture of any resolution; a model uses as many as it needs."""


class LayerFlops(NamedTuple):
    """The fitted FLOPs of a decoder layer, and the sizes of its cache.

    Attributes:
        row: FLOPs of the projections and the MLP per row; in a mixture of experts, of the router and the row's experts.
        pair: FLOPs of attention per pair of query row and key row.
        key: FLOPs per key row, independent of the number of queries: expanding a compressed key (MLA).
        chunk: FLOPs per chunk of rows, within the chunk and with the state (the gated delta rule).
        state: Numbers in the state.
        stored: Numbers in the cache per row: its key and value.
        window: Rows that a row attends to, including itself; None for all. 1 for a layer with a state, which caches no
            rows.
    """

    row: int
    pair: int
    key: int
    chunk: int
    state: int
    stored: int
    window: int | None

    def flops(self, rows: int, keys: int, halved: bool = False) -> int:
        """Return the FLOPs of `rows` queries on `keys` keys. `halved` counts half of the attention."""
        looking = rows * keys * self.pair
        if halved:
            looking //= 2
        if rows == 1:  # three products with the state: read by key, correct, read by query
            carrying = 6 * self.state
        else:
            carrying = -(-rows // CHUNK) * self.chunk
        return rows * self.row + keys * self.key + looking + carrying

    def ahead(self, keys: int, queries: int, width: int) -> int:
        """Return the FLOPs of projecting rows of `width` numbers to keys and to queries, without attention.

        A key is half of what a row stores. A pair takes four FLOPs for each number of a query.
        """
        return width * (keys * self.stored + queries * self.pair // 2)

    def held(self, rows: int) -> int:
        """Return the rows in the cache after `rows` rows: those that the next row attends to."""
        if self.window is None:
            return rows
        return min(rows, self.window - 1)


class Measured(NamedTuple):
    """The measured costs of a model.

    Attributes:
        layers: The decoder layers.
        width: Width of the residual stream.
        head: FLOPs of the language-model head on one row.
        tower: The vision tower; None if it is not counted.
    """

    layers: tuple[LayerFlops, ...]
    width: int
    head: int
    tower: TowerFlops | None


_KNOWN: dict[tuple[type[Any], str], Measured] = {}


def measure(config: Any) -> Measured:
    """Measure the matrix products of a config's model, on prompts of several lengths, a decode step and a picture.

    Convolutions in the decoder are not counted. In a mixture of experts, each row uses as many experts as the config
    says. Results are cached by config.

    Raises:
        UnsupportedError: If the layers do not run without weights, or their FLOPs are not a fixed number per row plus a
            fixed number per pair of rows.
    """
    key = type(config), config.to_json_string(use_diff=False)
    if key in _KNOWN:
        return _KNOWN[key]
    try:
        _KNOWN[key] = _measure_anew(copy.deepcopy(config))
    except UnsupportedError:
        raise
    except (ValueError, ImportError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        kind = config.get_text_config().model_type
        raise UnsupportedError(f"The cost of a decoder of type {kind!r} is not known: {first_line(error)}") from error
    return _KNOWN[key]


def _measure_anew(config: Any) -> Measured:
    """Measure without the cache. Raises ValueError with the reason, which `measure` completes."""
    with torch.device("meta"):
        model = _without_weights(config)
        family = family_kind(config.model_type, type(config).__name__)(model)
        cache = None
        prompts = []
        for rows in ROWS:
            cache = DynamicCache(config=family.text.config)
            keeps = [(type(layer), getattr(layer, "sliding_window", None)) for layer in _layers(cache, family)]
            firsts = _firsts(family.layers, keeps)
            prompts.append(_flops(family, cache, firsts, rows))
        steps = [_flops(family, cache, firsts, 1) for _ in range(2)]
    if family.lenders:
        raise ValueError("its layers attend to keys of earlier layers")
    if family.indexed:
        raise ValueError("its layers cache an index in addition to keys")
    fits, held = {}, _layers(cache, family)
    for index in sorted(set(firsts)):
        counts, after = [prompt[index] for prompt in prompts], [step[index] for step in steps]
        window = getattr(held[index], "sliding_window", None)
        if index in family.recurrent:
            window, products = 1, _fit_state(counts, after)
        else:
            products = _fit(counts, after, [min(ROWS[-1] + step, window or math.inf) for step in (1, 2)])
        if products is None:
            raise ValueError(
                f"the FLOPs of its {type(family.layers[index]).__name__} are not a fixed number per row and per pair"
            )
        states = [getattr(held[index], name, None) for name in ("keys", "values")]
        stored = sum(state[:, :, 0].numel() for state in states if isinstance(state, Tensor) and state.dim() == 4)
        carried = getattr(held[index], "recurrent_states", None) if products[-1] else None
        of_all = carried.values() if isinstance(carried, dict) else [carried]
        state = sum(tensor.numel() for tensor in of_all if isinstance(tensor, Tensor))
        fits[index] = LayerFlops(*products, state, stored, window)
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError("it has no head")
    layers = tuple(fits[first] for first in firsts)
    return Measured(layers, family.text.config.hidden_size, 2 * head.weight.numel(), _tower(family, config))


def _without_weights(config: Any) -> Any:
    """Build the model of a config on the current default device."""
    settings = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}
    names = ("AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForCausalLM")
    for auto in [getattr(transformers, name) for name in names if hasattr(transformers, name)]:
        try:
            return auto.from_config(config, **settings).eval()
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
    raise ValueError(f"transformers has no model for a {type(config).__name__}")


def _firsts(layers: Iterable[nn.Module], kept: Sequence[Any]) -> list[int]:
    """Return for each layer the index of the first layer with equal FLOPs: of equal type, weight shapes and cache.

    Example: layers A, B, A, B -> 0, 1, 0, 1.
    """
    kinds: dict[Any, int] = {}
    firsts = []
    for index, (layer, what) in enumerate(zip(layers, kept, strict=True)):
        shapes = tuple([(name, weight.shape) for name, weight in layer.named_parameters()])
        firsts.append(kinds.setdefault((type(layer), shapes, what), index))
    return firsts


def _flops(family: Family, cache: Any, firsts: Sequence[int], rows: int) -> dict[int, int]:
    """Run the decoder on `rows` new rows after those in the cache, and return the FLOPs of each first layer.

    Raises:
        ValueError: If the decoder has matrix products outside its layers, or parts of a layer do not run (ERNIE's
            experts for vision tokens).
    """
    text, layers = family.text, family.layers
    rotary = getattr(text, "rotary_emb", None)
    embeds = torch.empty(1, rows, text.config.hidden_size, dtype=text.dtype)
    runs = dict[nn.Module, _Block]()
    with Patcher() as patches, torch.no_grad(), FlopCounterMode(display=False) as counter:
        for layer, first in zip(layers, firsts, strict=True):
            patches.wrap(layer, "forward", partial(_run_block, runs, counter, layers[first]))
        # RoPE scaled by length reads values, which meta tensors lack.
        if isinstance(getattr(rotary, "rope_type", None), str):
            patches.put(rotary, "rope_type", "default")
        text(inputs_embeds=embeds, use_cache=True, **with_cache(cache))
    # transformers 5.16 computes the tables of RoPE with a matrix product, without weights.
    tables = [kinds for path, kinds in counter.get_flop_counts().items() if path.endswith(".rotary_emb")]
    of_tables = sum(sum(kinds.values()) for kinds in tables)
    if of_tables + sum(run.by_rows + run.by_pairs for run in runs.values()) != sum(_products(counter)):
        raise ValueError("it has matrix products outside its layers")
    counts, names = counter.get_flop_counts(), {module: name for name, module in text.named_modules()}
    for layer in runs:
        for part in layer.modules():
            stacks = not isinstance(part, nn.Conv1d) and any(one.dim() > 2 for one in part.parameters(recurse=False))
            is_linear = isinstance(part, nn.Linear) or stacks  # experts are stacks of linear layers
            if is_linear and f"{type(text).__name__}.{names[part]}" not in counts:
                raise ValueError(f"whether its {type(part).__name__} runs depends on the row")
    return {first: runs[layers[first]].by_rows + runs[layers[first]].by_pairs for first in firsts}


def _fit(prompts: list[int], steps: list[int], seen: list[Any]) -> tuple[int, int, int, int] | None:
    """Solve for the FLOPs per row, per pair of rows, per key row and per chunk (0). None if they do not fit all counts.

    A prompt of n rows takes n · row + n · key + n² · pair, a decode step on k keys row + k · key + k · pair.

    Args:
        prompts: FLOPs of prompts of `ROWS` rows.
        steps: FLOPs of two decode steps after the last prompt.
        seen: The number of keys in each of these steps.
    """
    # count / n = row + key + n · pair, so two lengths give `pair`, and then row + key (`both`).
    first, second, _ = (count // rows for count, rows in zip(prompts, ROWS, strict=True))
    by_pair = (second - first) // (ROWS[1] - ROWS[0])
    both = first - by_pair * ROWS[0]
    by_key = (steps[0] - both - by_pair * seen[0]) // (seen[0] - 1)
    by_row = both - by_key
    calls = [
        *zip(ROWS, ROWS, prompts, strict=True),
        *((1, keys, count) for keys, count in zip(seen, steps, strict=True)),
    ]
    fits = all(rows * by_row + keys * by_key + rows * keys * by_pair == count for rows, keys, count in calls)
    if by_pair <= 0 or not fits:
        return None
    return by_row, by_pair, by_key, 0


def _fit_state(prompts: list[int], steps: list[int]) -> tuple[int, int, int, int] | None:
    """Solve like `_fit` for a layer without attention: FLOPs per row and per chunk.

    A decode step has no chunk: its products with the state are element-wise, and torch does not count them.
    """
    by_row = (prompts[1] - prompts[0]) // (ROWS[1] - ROWS[0])
    by_chunk = prompts[0] - ROWS[0] * by_row
    calls = zip(ROWS, prompts, strict=True)
    fits = all(rows * by_row + -(-rows // CHUNK) * by_chunk == count for rows, count in calls)
    if steps != [by_row, by_row] or not fits:
        return None
    return by_row, 0, 0, by_chunk


def _layers(cache: Any, family: Family) -> list[Any]:
    """Return the cache of each decoder layer; None for layers without one."""
    depth = len(family.layers)
    return [*cache.layers, *[None] * depth][:depth]


# -- the tower -----------------------------------------------------------------------------------------------------


class _RealPictures(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps tensors without weights, such as grid sizes, on the CPU, so that code can read their values.

    They move to the meta device only in an operation with another meta tensor.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        elif "device" in kwargs:
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


class _Block(NamedTuple):
    """The run of a block: its output, the shape of its input, the model's FLOPs before it, and its own FLOPs per kind:
    products with weights, and attention."""

    answer: Any
    shape: torch.Size
    before: int
    by_rows: int
    by_pairs: int


class _Encoded(NamedTuple):
    """A run of the tower.

    Attributes:
        blocks: The run of each block, or of the first block with equal FLOPs.
        tokens: Vision tokens of a picture if pictures may have any size, else 0.
        pictures: The number of pictures, including tiles and frames.
        beside: FLOPs of the tower outside its blocks, per picture.
        projector: FLOPs of the projector, per picture.
    """

    blocks: list[_Block]
    tokens: int
    pictures: int
    beside: int
    projector: int


def _tower(family: Family, config: Any) -> TowerFlops | None:
    """Measure the tower on one picture and on two; None if it does not run without weights."""
    if not family.defines("block"):
        return None
    try:
        run = _encode(family, config, "image", 1)
        frame, joined, side = run, False, 1
        if run.tokens:
            joined = _encode(family, config, "image", 2).blocks[0].by_pairs > 2 * run.blocks[0].by_pairs
        else:
            side = family.block(config)
            if family.projects_frames:
                frame = _encode(family, config, "video", 2)
    except (RuntimeError, TypeError, AttributeError, LookupError, ValueError):
        return None
    vision, of_batch = config.vision_config, run.blocks[0].shape
    rows = of_batch[:-1].numel() // run.pictures
    grid, patches, unit = None, rows, rows // max(run.tokens, 1)
    if not run.tokens:
        sizes = zip(_pair(vision.image_size), _pair(vision.patch_size), strict=True)
        tall, wide = (size // patch for size, patch in sizes)
        grid, patches, unit = (tall // side, wide // side), tall * wide, side**2
    full = getattr(vision, "fullatt_block_indexes", None)
    windowed, window = frozenset[int](), 0
    if full is not None:
        windowed = frozenset(range(len(run.blocks))) - {*full}
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size
    return TowerFlops(
        grid=grid,
        unit=unit,
        cls=rows - patches,
        rows=tuple(block.by_rows // (run.pictures * rows) for block in run.blocks),
        pairs=tuple(block.by_pairs // (run.pictures * rows**2) for block in run.blocks),
        patches=patches,
        beside=run.beside,
        projector=run.projector,
        frame=frame.projector,
        pooled=hasattr(config, "mm_tokens_per_image"),
        joined=joined,
        windowed=windowed,
        window=window,
    )


def _encode(family: Family, config: Any, modality: str, count: int) -> _Encoded:
    """Encode `count` pictures or frames without weights."""
    lists = [[block for block, _ in blocks] for blocks in blocks_of(family.core, family.layers)]
    sizes = [sum(weight.numel() for block in blocks for weight in block.parameters()) for blocks in lists]
    # The tower of pictures, and that of videos if they have their own.
    towers = [blocks for blocks, size in zip(lists, sizes, strict=True) if size == max(sizes)]
    firsts = {tower[0]: [tower[first] for first in _firsts(tower, [None] * len(tower))] for tower in towers}
    runs = dict[nn.Module, _Block]()
    pictures_stay = _RealPictures()  # type: ignore[no-untyped-call]
    encode = getattr(family.core, f"get_{modality}_features")
    inputs, tokens = _pictures(config, modality, count, [*inspect.signature(encode).parameters])
    with Patcher() as patches, torch.no_grad(), FlopCounterMode(display=False) as counter, pictures_stay:
        for tower in towers:
            for block, first in zip(tower, firsts[tower[0]], strict=True):
                patches.wrap(block, "forward", partial(_run_block, runs, counter, first))
        encode(**inputs)
    (blocks,) = [[runs[block] for block in of_tower] for first, of_tower in firsts.items() if first in runs]
    pictures = count if tokens else blocks[0].shape[0]
    # SigLIP's pooling head runs, though its output is not used.
    heads = [of_kinds for path, of_kinds in counter.get_flop_counts().items() if path.endswith(".head")]
    beside = blocks[0].before + sum(sum(of_kinds.values()) for of_kinds in heads)
    others = counter.get_total_flops() - beside - sum(run.by_rows + run.by_pairs for run in runs.values())
    return _Encoded(blocks, tokens, pictures, beside // pictures, others // pictures)


def _run_block(
    runs: dict[nn.Module, _Block], counter: FlopCounterMode, first: nn.Module, original: Any, *args: Any, **kwargs: Any
) -> Any:
    """Run a block, or return the output of the first block with equal FLOPs if that has run already."""
    if first not in runs:
        shape = (args[0] if args else next(iter(kwargs.values()))).shape
        before, (by_rows, by_pairs) = counter.get_total_flops(), _products(counter)
        answer = original(*args, **kwargs)
        behind = _products(counter)
        runs[first] = _Block(answer, shape, before, behind[0] - by_rows, behind[1] - by_pairs)
    return runs[first].answer


def _products(counter: FlopCounterMode) -> tuple[int, int]:
    """Return the FLOPs so far of products with weights and of attention, without convolutions.

    Attention uses batched products (bmm), and products with weights do not.
    """
    of_kinds = counter.get_flop_counts().get("Global", {})
    products = sum(count for kind, count in of_kinds.items() if "convolution" not in str(kind))
    by_pairs = sum(count for kind, count in of_kinds.items() if "bmm" in str(kind))
    return products - by_pairs, by_pairs


def _pictures(config: Any, modality: str, count: int, names: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Build the inputs that a processor would make for `count` pictures.

    Args:
        config: The model's config.
        modality: "image" or "video".
        count: The number of pictures or frames.
        names: The parameters of the model's encoding function.

    Returns:
        The inputs by name, and the vision tokens of a picture if pictures may have any size, else 0.
    """
    vision, grids = config.vision_config, f"{modality}_grid_thw"
    tall, wide = _pair(vision.patch_size)
    if grids in names:  # one token, which fits into any window
        side = vision.spatial_merge_size
        channels = getattr(vision, "in_channels", 3) * vision.temporal_patch_size
        patches = torch.ones(count * side**2, channels * tall * wide)
        return {names[0]: patches, grids: torch.tensor([[1, side, side]] * count)}, 1
    # 4 tokens: the model cannot split the features of one.
    if "image_sizes" in names and hasattr(config, "spatial_merge_size"):
        side = 2 * config.spatial_merge_size * tall
        return {names[0]: torch.ones(count, 3, side, side), "image_sizes": torch.tensor([[side, side]] * count)}, 4
    size = _pair(vision.image_size)
    pixels = torch.ones(1).expand(1, VIEWS, 3, *size)
    if hasattr(config, "image_grid_pinpoints") and modality == "image":
        return {names[0]: pixels, "image_sizes": torch.tensor([size])}, 0
    if "pixel_attention_mask" in names or modality == "video":
        return {names[0]: pixels[:, :count]}, 0
    return {names[0]: pixels[0, :count]}, 0


def _pair(size: Any) -> tuple[int, int]:
    """Return height and width from a config value, which is one number for both or a pair."""
    tall, wide = (size, size) if isinstance(size, int) else size
    return tall, wide
