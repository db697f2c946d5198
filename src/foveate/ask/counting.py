"""Count a prompt's tokens with little memory: prepare blank videos, and find `max_pixels` for a number of tokens."""

import copy
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveate.ask.loaded import Loaded
from foveate.ask.prompt import Prompt, prepare
from foveate.ask.vlm import VLM
from foveate.core.patching import Patcher
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.video import Clip

STEPS = ("process_image", "pad_to_square", "resize", "center_crop", "rescale", "normalize")
"""Steps of image processors that run image by image."""


def prepare_blank(vlm: VLM, media: list[Any], question: str, **showing: Any) -> Prompt:
    """Prepare a prompt with blank videos, using little memory if the processor allows it.

    The ids are those of `VLM.prepare`. Pixels of videos may be meta tensors, which have a shape and no values.

    Args:
        vlm: The model.
        media: Images, and videos of blank frames.
        question: The question.
        showing: `frames`, `fps` and `fit`, as for `VLM.prepare`.

    Raises:
        FoveateError: As for `VLM.prepare`.
    """
    taken: dict[str, tuple[Any, Any]] = {}

    def once(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a step once per distinct array: all blank frames share one. A tensor result is kept as its shape only."""
        values = (*args, *kwargs.values())
        places = [value.__array_interface__ if isinstance(value, np.ndarray) else value for value in values]
        key = f"{original.__name__} {[*kwargs]} {places}"
        if key not in taken:
            result = original(*args, **kwargs)
            if isinstance(result, Tensor):
                result = result.to("meta")
            taken[key] = result, values  # keeping the values alive keeps their addresses unique
        return taken[key][0]

    images = getattr(vlm.processor, "image_processor", None)
    if any(isinstance(medium, Clip) for medium in media):
        try:
            with Patcher() as patches, _Shapes():
                for name in STEPS:
                    if hasattr(images, name):
                        patches.wrap(images, name, once)
                return vlm.prepare(media, question, **showing)
        except InputError:
            taken.clear()  # the processor may read pixel values, so prepare real arrays
    return vlm.prepare(media, question, **showing)


class _Shapes(TorchFunctionMode):
    """Moves videos that are one byte expanded (all strides 0) to the meta device, and reads zeros from there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.contiguous and args[0].dtype == torch.uint8 and not any(args[0].stride()):
            return args[0].to("meta")
        try:
            return function(*args, **(kwargs or {}))
        except NotImplementedError:
            first, *others = args
            return function(torch.zeros((), dtype=first.dtype), *others, **(kwargs or {})).expand(first.shape)


# -- pixels -------------------------------------------------------------------------------------------------------


def most_pixels(loaded: Loaded, prompt: Prompt, tokens: int) -> int:
    """Return the largest `max_pixels` at which a prompt has at most `tokens` vision tokens.

    Args:
        loaded: A model whose processor scales images by their number of pixels, like those of Qwen and GLM.
        prompt: The prompt, prepared with the current processor.
        tokens: Maximum vision tokens.

    Returns:
        `max_pixels` for the processor: a multiple of a token's pixels, and at most its current value.

    Raises:
        SettingError: If the prompt has more tokens even at the smallest size.
        UnsupportedError: If the processor does not scale images by pixels.
    """
    images: Any = getattr(loaded.processor, "image_processor", None)
    size: Any = getattr(images, "size", None) or {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")  # areas in pixels, despite their names
    if not hasattr(images, "merge_size") or least is None or most is None:
        raise UnsupportedError(
            f"{type(loaded.processor).__name__} has no max_pixels: the tokens of a picture do not depend on its pixels "
            "alone. Drop tokens instead, with a budget."
        )
    step = (images.patch_size * images.merge_size) ** 2  # pixels per token

    def tokens_at(pixels: int) -> int:
        processor = copy.copy(loaded.processor)
        processor.image_processor = scaled = copy.copy(images)
        scaled.size = type(size)(shortest_edge=min(least, pixels), longest_edge=pixels)
        return prepare(Loaded(loaded.model, processor, loaded.name), prompt.conversation).vision_tokens

    if (floor := tokens_at(step)) > tokens:
        raise SettingError(f"This prompt has at least {floor} vision tokens; got {tokens}.")
    # More pixels never give fewer tokens, so bisect for the largest size that fits.
    larger = range(2, most // step + 1)
    return int(step * (1 + bisect_right(larger, tokens, key=lambda size: tokens_at(size * step))))
