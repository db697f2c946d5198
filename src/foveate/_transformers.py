"""The host: all that foveate knows of transformers' inside, which its documentation does not promise.

Which versions are served, the names that are used, what they are called in each version, and a probe that says when one
is gone. Importing this module, and with it the engine or a family, fails on a version that is too old or that lacks a
name, and warns on one that is newer than those tested.
"""

import copy
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from foveate.errors import UnsupportedError
from foveate.plain.version import __version__

OLDEST, NEWEST = "5.16.1", "5.24"
"""The versions all tests pass on, `make test-oldest` and `make test`."""
NEWEST_TORCH = "2.13"
"""The newest torch that all tests pass on."""

NAMES: Mapping[str, str] = {
    "transformers:PreTrainedConfig._attn_implementation": "which kernel a model runs; public only to set",
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS.get_interface": "the kernel that a look goes on to",
    "transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS.get": "which form of mask a kernel reads",
    "transformers.masking_utils:create_causal_mask": "what the cache of a call is called",
    "transformers.masking_utils:sdpa_mask": "4-D bool masks",
    "transformers.masking_utils:eager_mask": "4-D float masks",
    "transformers.masking_utils:flash_attention_mask": "2-D masks",
    "transformers:GenerationMixin._get_logits_processor": "where a check tells generate what to say",
    "transformers.utils:cached_file": "where the hub's cache has a file of a model",
    "transformers.utils:ModelOutput": "what generate answers",
    "transformers.cache_utils:Cache": "what may hold layers of different lengths",
    "transformers.cache_utils:Cache.update(key_states, value_states, layer_idx)": "how a layer's rows get there",
    "transformers.cache_utils:Cache.get_seq_length": "how many columns it has",
    "transformers.cache_utils:Cache.get_mask_sizes(query_length, layer_idx)": "how long masks are",
    "transformers.cache_utils:DynamicCache": "the usual cache",
    "transformers.cache_utils:DynamicCache().layers": "where a pruned layer takes the place of the cache's own",
    "transformers.cache_utils:DynamicCache().layer_class_to_replicate": "which layer an empty cache will make",
    "transformers.cache_utils:DynamicCache().offloading": "whether a cache moves its layers away",
    "transformers.cache_utils:DynamicCache().has_previous_state": "whether there is a state to go on from",
    "transformers.cache_utils:DynamicLayer": "base of the pruned layer",
    "transformers.cache_utils:DynamicLayer.update(key_states, value_states)": "stores rows",
    "transformers.cache_utils:DynamicLayer.crop(tokens_to_remove)": "takes rows back",
    "transformers.cache_utils:DynamicLayer.reset": "empties it",
    "transformers.cache_utils:DynamicLayer.reorder_cache(beam_idx)": "goes on with other beams",
    "transformers.cache_utils:DynamicLayer.batch_repeat_interleave(repeats)": "goes on with more samples",
    "transformers.cache_utils:DynamicLayer.batch_select_indices(indices)": "goes on with fewer samples",
    "transformers.cache_utils:DynamicLayer.get_seq_length": "how many columns it has",
    "transformers.cache_utils:DynamicLayer.get_mask_sizes(query_length)": "how long that mask is",
    "transformers.cache_utils:DynamicLayer().keys": "what it stores",
    "transformers.cache_utils:DynamicLayer().values": "what it stores",
    "transformers.cache_utils:DynamicLayer().is_initialized": "whether it stores anything yet",
    "transformers.cache_utils:DynamicLayer().is_sliding": "which mask the model builds for it",
    "transformers.cache_utils:DynamicSlidingWindowLayer": "a layer that evicts tokens",
    "transformers.cache_utils:DynamicSlidingWindowLayer(4).sliding_window": "whether it has evicted tokens",
    "transformers.cache_utils:DynamicSlidingWindowLayer(4).record_past": "whether it waits before it evicts them",
    "transformers.cache_utils:LinearAttentionLayer": "what holds a state in the place of keys and values",
    "transformers.vision_utils:get_vision_window_index": "in what order Qwen2.5-VL's tower has its tokens",
    "transformers.vision_utils:get_vision_cu_seqlens": "where segments of a Qwen-VL's tower end",
    "transformers.vision_utils:get_vision_position_ids": "rows and columns of its patches",
    "transformers.vision_utils:get_vision_interpolation_indices_and_weights": "their learned positions",
    "transformers.image_processing_utils:select_best_resolution": "tiles of a picture",
    "transformers.models.qwen3_vl.modeling_qwen3_vl:Qwen3VLTextModel._deepstack_process": "adds to tokens by a mask",
    "transformers.models.llama.modeling_llama:apply_rotary_pos_emb": "RoPE of a decoder, of its own module",
    "transformers.models.llama.modeling_llama:eager_attention_forward": "eager attention of a module, of its own",
}
"""Names of transformers that its documentation does not promise, and what each is for.

As module:expression; parameters in brackets behind a function are those that it must take, in this order, and brackets
behind a class make an instance, whose attribute is meant. Everything imported from below the top of transformers and
every attribute with an underscore is in here; a test sees to that. What modules inside a model are called is in the
families, and tested with them.
"""

CACHE_NAMES = ("cache", "past_key_values")
"""What a call's cache, and that of its output, is called: from 5.24 on, and before."""


def require(oldest: str, who: str, version: str = transformers.__version__) -> None:
    """Refuse a version of transformers that is too old for somebody.

    Raises:
        UnsupportedError: If it is older than `oldest`.
    """
    if older(version, oldest):
        raise UnsupportedError(
            f"{who} needs transformers {oldest} or newer; this is {version}. "
            f"Upgrade it: pip install 'transformers>={oldest}'."
        )


def check_version(version: str, of_torch: str = str(torch.__version__)) -> None:
    """Refuse a version of transformers that is too old, and warn of one, or of a torch, that is too new to be tested.

    Raises:
        UnsupportedError: If it is older than `OLDEST`.
    """
    require(OLDEST, "foveate", version)
    for name, installed, newest in (("transformers", version, NEWEST), ("torch", of_torch, NEWEST_TORCH)):
        if older(f"{newest}.99", installed):
            oldest = "up to "
            if name == "transformers":
                oldest = f"{OLDEST} to "
            warnings.warn(
                f"foveate {__version__} is tested with {name} {oldest}{newest}; this is {installed}. Prove it on your "
                f"model with `foveate check MODEL`, or install a tested version: pip install '{name}=={newest}.*'.",
                stacklevel=2,
            )


@functools.cache
def older(version: str, than: str) -> bool:
    """Whether one version comes before another, by their numbers alone."""
    one, other = ([int(digits) for digits in re.findall(r"\d+", text)[:3]] for text in (version, than))
    return one < other


check_version(transformers.__version__)

try:
    # Its image code imports torchvision wherever there is one.
    from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
except (ImportError, RuntimeError) as error:
    raise UnsupportedError(
        "transformers cannot be imported. If torchvision was built for another torch, install the one for your torch, "
        "or none: pip uninstall torchvision timm."
    ) from error


def unknown(what: str) -> UnsupportedError:
    """The error for a transformers that is not as foveate knows it.

    Args:
        what: What is wrong with it, as the end of a sentence: "has no DynamicLayer.crop".
    """
    return UnsupportedError(
        f"transformers {transformers.__version__} {what}. foveate {__version__} knows transformers {OLDEST} to "
        f"{NEWEST}: install one of these, as by pip install 'transformers=={NEWEST}.*', or a newer version of foveate."
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
    raise unknown(f"lacks a name that foveate needs ({error})") from error


DummyLayer: type = getattr(cache_utils, "DummyLayer", LinearAttentionLayer)
"""What stands in a cache for a decoder layer that stores nothing; none has such before 5.20."""


IndexedLayer: type = getattr(cache_utils, "DynamicIndexedLayer", LinearAttentionLayer)
"""What holds an index of keys beside the keys; the oldest versions have no such."""


def select_best_resolution(size: tuple[int, int], resolutions: list[Any]) -> tuple[int, int]:
    """(height, width) of the tiles for a picture of such a size; imported late, as image code takes its time."""
    try:
        from transformers.image_processing_utils import select_best_resolution as select
    except ImportError as error:
        raise unknown(f"lacks a name that foveate needs ({error})") from error
    best: tuple[int, int] = select(size, resolutions)
    return best


# -- a probe ------------------------------------------------------------------------------------------------------


NOTHING = object()
NAME = re.compile(r"(?P<module>[\w.]+):(?P<owner>\w+)(?P<made>\(\d*\))?(\.(?P<attribute>\w+))?(\((?P<takes>.+)\))?")


def probe() -> Iterator[str]:
    """What is wrong with this transformers, as `unknown` takes it: nothing, if all `NAMES` are as they are known.

    It is asked whenever a context opens, and looks at modules that are imported already; some microseconds.
    """
    for (module, owner, made, attribute, takes), name in zip(_PARTS, NAMES, strict=True):
        if module not in sys.modules:
            continue
        try:
            value = getattr(sys.modules[module], owner)
            if made is not None:
                value = value(*made)
            if attribute:
                value = getattr(value, attribute)
        except (AttributeError, NameError, TypeError):
            value = NOTHING
        if value is NOTHING or getattr(value, "__isabstractmethod__", False):
            yield f"has no {name.partition(':')[2]} ({NAMES[name]})"
            continue
        if takes and _parameters(value)[: len(takes)] != takes:
            yield f"has another {owner}.{attribute}: it takes ({', '.join(_parameters(value))}), and not {takes}"


def _parts(name: str) -> tuple[str, str, tuple[int, ...] | None, str | None, tuple[str, ...]]:
    """Of "m:Layer(4).window": m, Layer, (4,), window and (); of "m:Layer.crop(rows)": m, Layer, None, crop, (rows,)."""
    match = NAME.fullmatch(name)
    assert match is not None
    made = None
    if match["made"] is not None:
        made = tuple(int(digits) for digits in re.findall(r"\d+", match["made"]))
    takes = ()
    if match["takes"]:
        takes = tuple(match["takes"].split(", "))
    return match["module"], match["owner"], made, match["attribute"], takes


_PARTS = tuple(_parts(name) for name in NAMES)


@functools.cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters, without `self`."""
    return tuple(name for name in inspect.signature(function).parameters if name != "self")


DECODER = ("inputs_embeds", "attention_mask", CACHE_NAMES)
LAYER = ("hidden_states", "attention_mask", "position_embeddings", CACHE_NAMES)
"""What a decoder, and a layer of it, is called with; where there are several names, one of them."""


def by_name(module: nn.Module, args: Any, kwargs: dict[str, Any], skip: int = 1) -> dict[str, Any]:
    """What a module is handed, but for the first `skip` arguments, all by name, as its class calls it."""
    names = _parameters(type(module).forward)
    return {**dict(zip(names[skip:], args[skip:], strict=False)), **kwargs}


def lacks(module: nn.Module, names: tuple[str | tuple[str, ...], ...]) -> str | None:
    """What the forward of a module does not take of these names, as `unknown` takes it; None if it takes all.

    A forward of somebody else's, which takes anything, says nothing.
    """
    takes = _parameters(type(module).forward)
    if "args" in takes:
        return None
    for name in names:
        either = (name,) if isinstance(name, str) else name
        if not set(either) & set(takes):
            return f"has a {type(module).__name__} that takes no {' or '.join(either)}"
    return None


# -- caches -------------------------------------------------------------------------------------------------------


def cache_of(arguments: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a call, by name; None if there is none."""
    for name in CACHE_NAMES:
        if arguments.get(name) is not None:
            return arguments[name]
    return None


def cache_in(output: Any) -> Any:
    """The cache that a forward or `generate` answers with; None if there is none."""
    name = next((name for name in CACHE_NAMES if hasattr(output, name)), None)
    if name is None:
        return None
    return getattr(output, name)


def with_cache(cache: Any) -> dict[str, Any]:
    """A cache as an argument of a forward or of `generate`, by its name in this version."""
    takes = _parameters(create_causal_mask)
    return {next(name for name in CACHE_NAMES if name in takes): cache}


# -- models -------------------------------------------------------------------------------------------------------


def rotation(attention: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """RoPE as an attention module applies it: (queries, keys, cos, sin) -> both, turned; None if it is not known."""
    home = vars(sys.modules[type(attention).__module__])
    sections = home.get("apply_multimodal_rotary_pos_emb")  # 5.16: M-RoPE's axes are combined in every layer
    if sections is not None:
        return functools.partial(sections, mrope_section=attention.config.rope_parameters["mrope_section"])
    rotate: Callable[..., tuple[Tensor, Tensor]] | None = home.get("apply_rotary_pos_emb")
    return rotate


@functools.cache
def scales_by_position(attention: type[nn.Module]) -> bool:
    """Whether an attention module asks for position ids beside RoPE, since it scales queries by them (Ministral 3)."""
    asked = inspect.signature(attention.forward).parameters.get("position_ids")
    return asked is not None and asked.default is inspect.Parameter.empty


def kind_of(module: nn.Module) -> Literal["attention", "state", "hybrid", "plain"]:
    """What a module does with its rows, by its own code: hands queries and keys to a kernel of transformers, carries a
    state, both, or neither. Its parts are modules of their own.

    Raises:
        UnsupportedError: If there is no code to read.
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


def numbers_rows(attention: nn.Module) -> bool:
    """Whether an attention counts the rows that it gets, and scales queries by that (Llama 4's layers without RoPE)."""
    counts = "arange(hidden_states.shape" in _code(type(attention))  # type: ignore[arg-type]
    return (
        counts
        and bool(getattr(attention, "attn_temperature_tuning", True))
        and not getattr(attention, "use_rope", False)
    )


def turns(attention: nn.Module | None) -> bool:
    """Whether an attention has RoPE; some layers of Llama 4, Cohere 2 or Exaone 4 have none."""
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
    """Whether a module caches an index of keys beside the keys, by which rows pick what they attend to (DSA)."""
    return "update_indexer" in _code(type(module))  # type: ignore[arg-type]


def indexes(module: nn.Module) -> int | None:
    """How many keys a row picks by an index of single keys; None where it is another index, as of pools of them."""
    code = _code(type(module))  # type: ignore[arg-type]
    picks = "topk = min(self.index_topk, index_scores.shape[-1])" in code and "pool" not in code
    return int(module.index_topk) if keeps_index(module) and picks else None  # type: ignore[arg-type]


@functools.cache
def _code(kind: Any) -> str:
    """The source of a class."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        raise UnsupportedError(
            f"The code of {kind.__name__} cannot be read, so that it is not known whether it attends or carries a "
            "state from token to token. Load the model from files with its source."
        ) from None


def recomputes_from_outside(layer: Any) -> bool:
    """Whether gradient checkpointing repeats, going back, all that stands around this layer's forward (5.16)."""
    outside = type(layer).__call__ is not nn.Module.__call__
    return outside and bool(layer.training and getattr(layer, "gradient_checkpointing", False))


def arguments_of(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those behind ** among them."""
    plain = getattr(function, "__func__", None)  # of a method, which is a new object for every model
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
    """One call of `get_image_features` or `get_video_features`, asked and answered in the form of the newest version.

    5.16 calls a LLaVA's video `pixel_values`, adds LLaVA-OneVision's newline to it later, and keeps the deepstack
    features of all images in one tensor.

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
        """What the original answers, with these arguments in the place of the call's own."""
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
        """What `run` answered, as the model expects it; what `run` answered stays as it is."""
        if self._newline is not None or self._deepstack_whole:
            output = copy.copy(output)
        if self._newline is not None and hasattr(output, "pooler_output"):
            output.pooler_output = output.pooler_output[:, :-1]
        if self._deepstack_whole:
            output.deepstack_features = [torch.cat(tuple(parts)) for parts in output.deepstack_features]
        return output
