"""Everything that foveate uses of transformers' internals, which its documentation does not guarantee.

Lists the supported versions, the names used and their spelling in each version; a probe reports missing names.
Importing this module, and with it the engine or a family, fails on a version that is too old or lacks a name. It warns
on a version newer than those tested.
"""

import copy
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from foveate.errors import UnsupportedError
from foveate.plain.version import __version__

OLDEST, NEWEST = "5.16.1", "5.24"
"""The oldest and newest versions on which all tests pass, `make test-oldest` and `make test`."""
NEWEST_TORCH = "2.15"
"""The newest torch on which all tests pass."""

ADAPTERS = ("active_adapter", "disable_adapters", "merged_adapters", "scaling")
"""Attributes of a PEFT layer that determine which adapters it computes with."""

NAMES: Mapping[str, str] = {
    "transformers:PreTrainedConfig._attn_implementation": "which kernel a model runs; public only to set",
    "transformers:PreTrainedConfig._experts_implementation": "which kernel experts run; public only to set",
    "transformers.models.qwen3_moe.modeling_qwen3_moe:Qwen3MoeExperts._apply_gate": "which modules are experts",
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS.get_interface": "the kernel that a tap calls",
    "transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS.get": "which form of mask a kernel reads",
    "transformers.masking_utils:create_causal_mask": "the name of a call's cache",
    "transformers.masking_utils:sdpa_mask": "4-D bool masks",
    "transformers.masking_utils:eager_mask": "4-D float masks",
    "transformers.masking_utils:flash_attention_mask": "2-D masks",
    "transformers.utils:cached_file": "the path of a model's file in the hub's cache",
    "transformers.utils:ModelOutput": "the result of generate",
    "transformers.cache_utils:Cache": "a cache with layers of different lengths",
    "transformers.cache_utils:Cache.update(key_states, value_states, layer_idx)": "how a layer's rows get there",
    "transformers.cache_utils:Cache.get_seq_length": "how many columns it has",
    "transformers.cache_utils:Cache.get_mask_sizes(query_length, layer_idx)": "how long masks are",
    "transformers.cache_utils:DynamicCache": "the usual cache",
    "transformers.cache_utils:DynamicCache().layers": "where a pruned layer replaces the cache's own",
    "transformers.cache_utils:DynamicCache().layer_class_to_replicate": "which layer an empty cache will make",
    "transformers.cache_utils:DynamicCache().offloading": "whether a cache offloads its layers",
    "transformers.cache_utils:DynamicCache().has_previous_state": "whether there is a state to continue from",
    "transformers.cache_utils:DynamicLayer": "base of the pruned layer",
    "transformers.cache_utils:DynamicLayer.update(key_states, value_states)": "stores rows",
    "transformers.cache_utils:DynamicLayer.crop(tokens_to_remove)": "removes rows",
    "transformers.cache_utils:DynamicLayer.reset": "empties it",
    "transformers.cache_utils:DynamicLayer.reorder_cache(beam_idx)": "continues with other beams",
    "transformers.cache_utils:DynamicLayer.batch_repeat_interleave(repeats)": "continues with more samples",
    "transformers.cache_utils:DynamicLayer.batch_select_indices(indices)": "continues with fewer samples",
    "transformers.cache_utils:DynamicLayer.get_seq_length": "how many columns it has",
    "transformers.cache_utils:DynamicLayer.get_mask_sizes(query_length)": "how long that mask is",
    "transformers.cache_utils:DynamicLayer().keys": "what it stores",
    "transformers.cache_utils:DynamicLayer().values": "what it stores",
    "transformers.cache_utils:DynamicLayer().is_initialized": "whether it stores anything yet",
    "transformers.cache_utils:DynamicLayer().is_sliding": "which mask the model builds for it",
    "transformers.cache_utils:DynamicSlidingWindowLayer": "a layer that evicts tokens",
    "transformers.cache_utils:DynamicSlidingWindowLayer(4).sliding_window": "whether it has evicted tokens",
    "transformers.cache_utils:DynamicSlidingWindowLayer(4).record_past": "whether it waits before it evicts them",
    "transformers.cache_utils:LinearAttentionLayer": "holds a state instead of keys and values",
    "transformers.vision_utils:get_vision_window_index": "the order of tokens in Qwen2.5-VL's tower",
    "transformers.vision_utils:get_vision_cu_seqlens": "where segments of a Qwen-VL's tower end",
    "transformers.vision_utils:get_vision_position_ids": "rows and columns of its patches",
    "transformers.vision_utils:get_vision_interpolation_indices_and_weights": "their learned positions",
    "transformers.image_processing_utils:select_best_resolution": "tiles of a picture",
    "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLTextModel._deepstack_process": "adds to tokens by a mask",
    "transformers.models.llama.modeling_llama:apply_rotary_pos_emb": "RoPE of a decoder, of its own module",
    "transformers.models.llama.modeling_llama:eager_attention_forward": "eager attention of a module, of its own",
}
"""Names of transformers that its documentation does not guarantee, and the use of each.

The form is module:expression. Parameters in brackets after a function are those that it must take, in this order.
Brackets after a class make an instance, and the attribute is looked up on it. A test checks that this lists everything
imported from a submodule of transformers, and every attribute that begins with an underscore. The families list the
names of modules inside a model, and their tests check those.
"""

CACHE_NAMES = ("cache", "past_key_values")
"""Names of the cache among a call's arguments and in its output: the first from 5.24 on, the second before."""


def require(oldest: str, who: str, version: str = transformers.__version__) -> None:
    """Refuse a version of transformers that is too old for `who`.

    Raises:
        UnsupportedError: If it is older than `oldest`.
    """
    if older(version, oldest):
        raise UnsupportedError(
            f"{who} needs transformers {oldest} or newer; this is {version}. "
            f"Upgrade it: pip install 'transformers>={oldest}'."
        )


def check_version(version: str) -> None:
    """Refuse a version of transformers that is too old, and warn if transformers or torch is newer than those tested.

    Raises:
        UnsupportedError: If it is older than `OLDEST`.
    """
    require(OLDEST, "foveate", version)
    for name, installed, newest in (("transformers", version, NEWEST), ("torch", str(torch.__version__), NEWEST_TORCH)):
        if older(f"{newest}.99", installed):
            warnings.warn(
                f"foveate {__version__} is tested with {name} up to {newest}; this is {installed}. Check it on your "
                f"model with `foveate check MODEL`, or install a tested version: pip install '{name}=={newest}.*'.",
                stacklevel=2,
            )


@functools.cache
def older(version: str, than: str) -> bool:
    """True if one version is lower than another. Compares the first three numbers; ignores suffixes such as rc1."""
    first, other = ([int(digits) for digits in re.findall(r"\d+", text)[:3]] for text in (version, than))
    return first < other


check_version(transformers.__version__)

try:
    # Its image code imports torchvision if it is installed.
    from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
except (ImportError, RuntimeError) as error:
    raise UnsupportedError(
        "transformers cannot be imported. If torchvision was built for another torch, install the one for your torch, "
        "or remove it: pip uninstall torchvision timm."
    ) from error


def unsupported(what: str) -> UnsupportedError:
    """Return the error for an installed transformers whose internals foveate does not know.

    Args:
        what: The difference, as the predicate of a sentence: "has no DynamicLayer.crop".
    """
    return UnsupportedError(
        f"transformers {transformers.__version__} {what}. foveate {__version__} knows transformers {OLDEST} to "
        f"{NEWEST}: install one of these (pip install 'transformers=={NEWEST}.*') or a newer version of foveate."
    )


try:
    from transformers import cache_utils
    from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
    from transformers.masking_utils import (
        ALL_MASK_ATTENTION_FUNCTIONS,
        create_causal_mask,
        eager_mask,
        flash_attention_mask,
        sdpa_mask,
    )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.utils import cached_file
    from transformers.vision_utils import (
        get_vision_cu_seqlens,
        get_vision_interpolation_indices_and_weights,
        get_vision_position_ids,
        get_vision_window_index,
    )
except ImportError as error:
    raise unsupported(f"lacks a name that foveate needs ({error})") from error


DummyLayer: type = getattr(cache_utils, "DummyLayer", LinearAttentionLayer)
"""The layer in a cache for a decoder layer that stores nothing. It exists from 5.20 on."""


IndexedLayer: type = getattr(cache_utils, "DynamicIndexedLayer", LinearAttentionLayer)
"""The layer that holds an index of keys in addition to the keys. The oldest versions do not have it."""


def select_best_resolution(size: tuple[int, int], resolutions: list[Any]) -> tuple[int, int]:
    """(height, width) of the tile grid for an image of this size. Imports late: image code is slow to import."""
    try:
        from transformers.image_processing_utils import select_best_resolution as select
    except ImportError as error:
        raise unsupported(f"lacks a name that foveate needs ({error})") from error
    best: tuple[int, int] = select(size, resolutions)
    return best


# -- a probe ------------------------------------------------------------------------------------------------------


ABSENT = object()
NAME = re.compile(r"(?P<module>[\w.]+):(?P<owner>\w+)(?P<made>\(\d*\))?(\.(?P<attribute>\w+))?(\((?P<takes>.+)\))?")


def probe() -> Iterator[str]:
    """Yield each difference of this transformers from `NAMES`, in the form that `unsupported` takes.

    Runs whenever a context opens. Checks only modules that are already imported, in a few microseconds.
    """
    for (module, owner, numbers, attribute, takes), name in zip(_PARTS, NAMES, strict=True):
        if module not in sys.modules:
            continue
        try:
            value = getattr(sys.modules[module], owner)
            if numbers is not None:
                value = value(*numbers)
            if attribute:
                value = getattr(value, attribute)
        except (AttributeError, NameError, TypeError):
            value = ABSENT
        if value is ABSENT or getattr(value, "__isabstractmethod__", False):
            yield f"has no {name.partition(':')[2]} ({NAMES[name]})"
            continue
        if takes and _parameters(value)[: len(takes)] != takes:
            yield f"has another {owner}.{attribute}: it takes ({', '.join(_parameters(value))}), not {takes}"


def _parts(name: str) -> tuple[str, str, tuple[int, ...] | None, str | None, tuple[str, ...]]:
    """Split a name of `NAMES` into its parts.

    "m:Layer(4).window" is m, Layer, (4,), window and (); "m:Layer.crop(rows)" is m, Layer, None, crop and (rows,).
    """
    match = NAME.fullmatch(name)
    assert match is not None
    numbers = None
    if match["made"] is not None:
        numbers = tuple(int(digits) for digits in re.findall(r"\d+", match["made"]))
    takes = ()
    if match["takes"]:
        takes = tuple(match["takes"].split(", "))
    return match["module"], match["owner"], numbers, match["attribute"], takes


_PARTS = tuple(_parts(name) for name in NAMES)


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters, without `self`."""
    return tuple(name for name in inspect.signature(function).parameters if name != "self")


DECODER = ("inputs_embeds", "attention_mask", CACHE_NAMES)
LAYER = ("hidden_states", "attention_mask", "position_embeddings", CACHE_NAMES)
"""Arguments that a decoder and its layers take. A tuple lists alternative names, of which each version has one."""


def by_name(module: nn.Module, args: Any, kwargs: dict[str, Any], skip: int = 1) -> dict[str, Any]:
    """A module's arguments by the names in its class, without the first `skip` positional ones."""
    names = _parameters(type(module).forward)
    return {**dict(zip(names[skip:], args[skip:], strict=False)), **kwargs}


def lacks(module: nn.Module, names: tuple[str | tuple[str, ...], ...]) -> str | None:
    """Report a name that a module's forward does not take, in the form that `unsupported` takes. None if it takes all.

    A replaced or compiled forward with `*args` counts as taking all.
    """
    forward = type(module).forward
    takes = _parameters(forward)
    if any(one.kind is one.VAR_POSITIONAL for one in inspect.signature(forward).parameters.values()):
        return None
    for name in names:
        either = (name,) if isinstance(name, str) else name
        if not set(either) & set(takes):
            return f"has a {type(module).__name__} that takes no {' or '.join(either)}"
    return None


# -- caches -------------------------------------------------------------------------------------------------------


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, by name. None if there is none."""
    for name in CACHE_NAMES:
        if arguments.get(name) is not None:
            return arguments[name]
    return None


def cache_in(output: Any) -> Any:
    """The cache in the result of a forward or of `generate`. None if there is none."""
    name = next((name for name in CACHE_NAMES if hasattr(output, name)), None)
    if name is None:
        return None
    return getattr(output, name)


def with_cache(cache: Any) -> dict[str, Any]:
    """The keyword argument that passes a cache to a forward or to `generate`, by its name in this version."""
    takes = _parameters(create_causal_mask)
    return {next(name for name in CACHE_NAMES if name in takes): cache}


# -- models -------------------------------------------------------------------------------------------------------


def rotation(attention: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """RoPE as an attention module applies it: (queries, keys, cos, sin) -> both, rotated. None if unknown."""
    home = vars(sys.modules[type(attention).__module__])
    sections = home.get("apply_multimodal_rotary_pos_emb")  # 5.16: every layer combines M-RoPE's axes
    if sections is not None:
        return functools.partial(sections, mrope_section=attention.config.rope_parameters["mrope_section"])
    rotate: Callable[..., tuple[Tensor, Tensor]] | None = home.get("apply_rotary_pos_emb")
    return rotate


@functools.cache
def scales_by_position(attention: type[nn.Module]) -> bool:
    """True if an attention module needs position ids in addition to RoPE, to scale queries by them (Ministral 3)."""
    asked = inspect.signature(attention.forward).parameters.get("position_ids")
    return asked is not None and asked.default is inspect.Parameter.empty


def kind_of(module: nn.Module) -> Literal["attention", "state", "hybrid", "plain"]:
    """Tell from a module's source code, without its submodules, how it mixes its rows.

    "attention": passes queries and keys to a kernel of transformers. "state": carries a state from row to row.
    "hybrid": both. "plain": neither.

    Raises:
        UnsupportedError: If its source code is not available.
    """
    code = _code(type(module))  # type: ignore[arg-type]
    attends = "ALL_ATTENTION_FUNCTIONS" in code
    carries = "update_conv_state" in code or "update_recurrent_state" in code
    if attends and carries:
        return "hybrid"
    if attends:
        return "attention"
    if carries:
        return "state"
    return "plain"


def attention_of(layer: nn.Module) -> Any:
    """The module of a decoder layer that attends. None if there is none, or more than one."""
    usual = getattr(layer, "self_attn", None)
    if usual is not None:
        return usual
    attending = [module for module in layer.modules() if kind_of(module) in ("attention", "hybrid")]
    if len(attending) != 1:
        return None
    return attending[0]


def numbers_rows(attention: nn.Module) -> bool:
    """True if an attention scales queries by the row numbers of its input (Llama 4's layers without RoPE)."""
    counts = "arange(hidden_states.shape" in _code(type(attention))  # type: ignore[arg-type]
    return (
        counts
        and bool(getattr(attention, "attn_temperature_tuning", True))
        and not getattr(attention, "use_rope", False)
    )


class Reach(NamedTuple):
    """How far a row of a decoder layer attends.

    Attributes:
        columns: So many of the latest columns, its own included; or the columns of a chunk.
        in_chunks: Whether it attends to its own chunk (Llama 4) instead of a sliding window.
    """

    columns: int
    in_chunks: bool = False


def reach_of(config: Any, layer: int, attention: nn.Module | None) -> Reach | None:
    """How far a decoder layer attends, from the decoder's config. None: to everything before a row."""
    types = getattr(config, "layer_types", None)
    kind = "" if types is None else types[layer]
    if kind == "chunked_attention":
        return Reach(config.attention_chunk_size, in_chunks=True)
    if attention is None or kind == "full_attention":
        return None
    window = getattr(attention, "sliding_window", None)
    # Mistral's attention does not know the window; the decoder's mask is that of all its layers.
    if kind == "sliding_attention" or (types is None and not hasattr(attention, "sliding_window")):
        window = window or getattr(config, "sliding_window", None)
    return None if window is None else Reach(int(window))


def turns(attention: nn.Module | None) -> bool:
    """True if an attention applies RoPE. Some layers of Llama 4, Cohere 2 and Exaone 4 do not."""
    code = "" if attention is None else _code(type(attention))  # type: ignore[arg-type]
    if not any(word in code for word in ("rotary", "rope", "freqs")) or not getattr(attention, "use_rope", True):
        return False
    by_window = re.search(r"if self\.sliding_window is (not )?None[^\n]*:\n(.*\n){0,2}.*apply_rotary", code)
    if by_window is None:
        return True
    has_window = getattr(attention, "sliding_window", None) is not None
    always = getattr(attention, "is_sliding", False) or getattr(attention, "force_rope", False)
    return always or has_window == (by_window[1] is not None)


def keeps_index(module: nn.Module) -> bool:
    """True if a module caches an index besides its keys, from which rows pick the keys to attend to (DSA)."""
    return "update_indexer" in _code(type(module))  # type: ignore[arg-type]


def indexes(module: nn.Module) -> int | None:
    """Number of keys that a row picks, if the index has one entry per key. None for other indexes, as over pools."""
    code = _code(type(module))  # type: ignore[arg-type]
    picks = "topk = min(self.index_topk, index_scores.shape[-1])" in code and "pool" not in code
    return int(module.index_topk) if keeps_index(module) and picks else None  # type: ignore[arg-type]


@functools.cache
def _code(kind: Any) -> str:
    """The source code of a class."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        raise UnsupportedError(
            f"The code of {kind.__name__} cannot be read, so it is not known whether it attends or carries a "
            "state from token to token. Import the class from a module with its source file."
        ) from None


CHECKPOINT = "_gradient_checkpointing_func"
"""The function with which a layer checkpoints its own forward, if it has one."""


def recomputes_from_outside(layer: Any) -> bool:
    """True if gradient checkpointing also reruns the wrappers of this layer's forward in the backward pass (5.16)."""
    outside = type(layer).__call__ is not nn.Module.__call__
    return outside and bool(layer.training and getattr(layer, "gradient_checkpointing", False))


def arguments_of(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, including those passed through `**kwargs`."""
    plain = getattr(function, "__func__", None)  # cache by the function; a bound method is new for every model
    if plain is None:
        signature = inspect.signature(function)
    else:
        signature = _signature(plain)
    arguments = dict(signature.bind(*args if plain is None else (None, *args), **kwargs).arguments)
    if plain is not None:
        del arguments[next(iter(arguments))]
    arguments.update(arguments.pop("kwargs", {}))
    return arguments


_signature = functools.lru_cache(256)(inspect.signature)


class FeatureCall:
    """One call of `get_image_features` or `get_video_features`, converted to the form of the newest version.

    5.16 differs in three ways: LLaVA models take a video as `pixel_values`, LLaVA-OneVision adds the newline to it
    after this call, and the deepstack features of all images are in one tensor.

    Attributes:
        modality: "image" or "video".
        arguments: The call's arguments by name.
    """

    def __init__(
        self, core: Any, modality: str, original: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        self.arguments = arguments_of(original, args, kwargs)
        self.modality = modality
        self._original = original
        self._renamed = modality == "video" and "pixel_values" in self.arguments
        self._newline = core.image_newline if self._renamed and core.config.model_type == "llava_onevision" else None
        self._deepstack_whole = False
        if self._renamed:
            self.arguments["pixel_values_videos"] = self.arguments.pop("pixel_values")

    def run(self, **other: Any) -> Any:
        """Call the original. The arguments given here replace those of the call."""
        arguments = {**self.arguments, **other}
        if self._renamed:
            arguments["pixel_values"] = arguments.pop("pixel_values_videos")
        output = self._original(**arguments)
        if not hasattr(output, "pooler_output"):
            return output
        if self._newline is not None:
            newlines = self._newline.expand(len(output.pooler_output), 1, -1).to(output.pooler_output)
            output.pooler_output = torch.cat((output.pooler_output, newlines), dim=1)
        deep = getattr(output, "deepstack_features", None)
        if deep and isinstance(deep[0], Tensor):
            self._deepstack_whole = True
            sizes = [len(features) for features in output.pooler_output]
            output.deepstack_features = [features.split(sizes) for features in deep]
        return output

    def answer(self, output: Any) -> Any:
        """Return the result of `run` in the form that the model expects. The result itself does not change."""
        if self._newline is not None or self._deepstack_whole:
            output = copy.copy(output)
        if self._newline is not None and hasattr(output, "pooler_output"):
            output.pooler_output = output.pooler_output[:, :-1]
        if self._deepstack_whole:
            output.deepstack_features = [torch.cat(tuple(parts)) for parts in output.deepstack_features]
        return output


def adapters_of(modules: Iterable[nn.Module]) -> list[str]:
    """Return which adapters each PEFT layer among modules computes with: active, disabled, merged and scaled."""
    # transformers' models have a method of this name.
    layers = (module for module in modules if isinstance(getattr(type(module), "disable_adapters", None), property))
    return [repr([getattr(layer, name, None) for name in ADAPTERS]) for layer in layers]
