"""What foveate needs of transformers: which versions, which names they do not promise, what older ones did otherwise.

Importing this module, and with it the engine or a family, fails on a version that is too old and warns on one that is
newer than those tested.
"""

import copy
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from foveate.errors import UnsupportedError

__all__ = [
    "NAMES",
    "NEWEST",
    "OLDEST",
    "FeatureCall",
    "check_version",
    "older",
    "recomputes_from_outside",
    "require",
    "rotation",
    "scales_by_position",
]

OLDEST, NEWEST = "5.16.1", "5.23"
"""The versions all tests pass on, `make test-oldest` and `make test`."""

NAMES: Mapping[str, str] = {
    "transformers:PreTrainedConfig._attn_implementation": "which kernel a model runs; public only to set",
    "transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS.get_interface": "the kernel that a look goes on to",
    "transformers.masking_utils:ALL_MASK_ATTENTION_FUNCTIONS.get": "which form of mask a kernel reads",
    "transformers.masking_utils:sdpa_mask": "4-D bool masks",
    "transformers.masking_utils:eager_mask": "4-D float masks",
    "transformers.masking_utils:flash_attention_mask": "2-D masks",
    "transformers.utils:cached_file": "where the hub's cache has a file of a model",
    "transformers.cache_utils:Cache": "what may hold layers of different lengths",
    "transformers.cache_utils:DynamicCache().layers": "where a pruned layer takes the place of the cache's own",
    "transformers.cache_utils:DynamicCache().layer_class_to_replicate": "which layer an empty cache will make",
    "transformers.cache_utils:DynamicCache().offloading": "whether a cache moves its layers away",
    "transformers.cache_utils:DynamicLayer": "base of the pruned layer",
    "transformers.cache_utils:DynamicLayer().keys": "what it stores",
    "transformers.cache_utils:DynamicLayer().values": "what it stores",
    "transformers.cache_utils:DynamicLayer().is_initialized": "whether it stores anything yet",
    "transformers.cache_utils:DynamicLayer().is_sliding": "which mask the model builds for it",
    "transformers.cache_utils:DynamicLayer().get_mask_sizes": "how long that mask is",
    "transformers.cache_utils:LinearAttentionLayer": "what holds a state in the place of keys and values",
    "transformers.cache_utils:DynamicCache().has_previous_state": "whether there is a state to go on from",
    "transformers.vision_utils:get_vision_window_index": "in what order Qwen2.5-VL's tower has its tokens",
    "transformers.vision_utils:get_vision_cu_seqlens": "where segments of a Qwen-VL's tower end",
    "transformers.vision_utils:get_vision_position_ids": "rows and columns of its patches",
    "transformers.vision_utils:get_vision_interpolation_indices_and_weights": "their learned positions",
    "transformers.cache_utils:DynamicSlidingWindowLayer(4).sliding_window": "whether it has evicted tokens",
    "transformers.image_processing_utils:select_best_resolution": "tiles of a picture",
    "transformers.models.llama.modeling_llama:apply_rotary_pos_emb": "RoPE of a decoder, of its own module",
    "transformers.models.llama.modeling_llama:eager_attention_forward": "eager attention of a module, of its own",
}
"""Names of transformers that its documentation does not promise, as module:expression, and what each is for.

Everything imported from below the top of transformers and every attribute with an underscore is in here; a test sees to
that, and to each still being there. What modules inside a model are called is in the families, and tested with them.
"""


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


def check_version(version: str) -> None:
    """Refuse a version of transformers that is too old, and warn of one that is too new to have been tested.

    Raises:
        UnsupportedError: If it is older than `OLDEST`.
    """
    require(OLDEST, "foveate", version)
    if older(f"{NEWEST}.99", version):
        warnings.warn(
            f"foveate is tested with transformers {OLDEST} to {NEWEST}; this is {version}. If anything fails, "
            f"install a tested version: pip install 'transformers=={NEWEST}.*'.",
            stacklevel=2,
        )


def older(version: str, than: str) -> bool:
    """Whether one version comes before another, by their numbers alone."""
    return _numbers(version) < _numbers(than)


def _numbers(version: str) -> tuple[int, ...]:
    """5.16.1 of "5.16.1.dev0"."""
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])


def rotation(attention: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """RoPE as an attention module applies it: (queries, keys, cos, sin) -> both, turned; None if it is not known."""
    home = vars(sys.modules[type(attention).__module__])
    sections = home.get("apply_multimodal_rotary_pos_emb")  # 5.16: M-RoPE's axes are combined in every layer
    if sections is not None:
        return functools.partial(sections, mrope_section=attention.config.rope_parameters["mrope_section"])
    rotate: Callable[..., tuple[Tensor, Tensor]] | None = home.get("apply_rotary_pos_emb")
    return rotate


def scales_by_position(attention: Any) -> bool:
    """Whether an attention module asks for position ids beside RoPE, since it scales queries by them (Ministral 3)."""
    asked = inspect.signature(type(attention).forward).parameters.get("position_ids")
    return asked is not None and asked.default is inspect.Parameter.empty


def recomputes_from_outside(layer: Any) -> bool:
    """Whether gradient checkpointing repeats, going back, all that stands around this layer's forward (5.16)."""
    outside = type(layer).__call__ is not nn.Module.__call__
    return outside and bool(layer.training and getattr(layer, "gradient_checkpointing", False))


class FeatureCall:
    """One call of `get_image_features` or `get_video_features`, asked and answered in the form of the newest version.

    5.16 calls a LLaVA's video `pixel_values`, adds LLaVA-OneVision's newline to it later, and keeps the deepstack
    features of all images in one tensor.

    Attributes:
        arguments: The call's arguments by name.
    """

    def __init__(
        self, core: Any, modality: str, original: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> None:
        self.arguments = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
        self.arguments.update(self.arguments.pop("kwargs", {}))
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


check_version(transformers.__version__)

try:
    from transformers import AttentionInterface  # noqa: F401  # its image code imports torchvision wherever there is one
except (ImportError, RuntimeError) as error:
    raise UnsupportedError(
        "transformers cannot be imported. If torchvision was built for another torch, install the one for your torch, "
        "or none: pip uninstall torchvision timm."
    ) from error
