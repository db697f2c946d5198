"""What a processor makes of a film whose frames are blank: ids as they are, and tensors of shapes alone."""

import copy
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
"""What image processors do to one picture after another."""


def prepare_blank(vlm: VLM, media: list[Any], question: str, **showing: Any) -> Prompt:
    """What `VLM.prepare` gives, with pixels that are all 0 where there are films, in little memory if that is possible.

    Args:
        vlm: The model.
        media: Pictures, and films of blank frames.
        question: What is asked.
        showing: `frames`, `fps` and `fit`, as for `VLM.prepare`.

    Raises:
        FoveateError: As for `VLM.prepare`.
    """
    taken: dict[str, tuple[Any, Any]] = {}

    def once(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A step on the same array once, as all frames are one picture; of a tensor, its shape remains."""
        values = (*args, *kwargs.values())
        places = [value.__array_interface__ if isinstance(value, np.ndarray) else value for value in values]
        key = f"{original.__name__} {[*kwargs]} {places}"
        if key not in taken:
            result = original(*args, **kwargs)
            if isinstance(result, Tensor):
                result = result.to("meta")
            taken[key] = result, values  # the values live on, so that their places stay their own
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
            taken.clear()  # it may be that the processor reads pixels
    return vlm.prepare(media, question, **showing)


class _Shapes(TorchFunctionMode):
    """Moves films of one byte to the device without memory, and has zeros for who wants to read from there."""

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
    """The most pixels of a picture with which a prompt has no more than so many vision tokens.

    Args:
        loaded: A model whose processor scales pictures to a number of pixels, as those of Qwen and GLM do.
        prompt: The pictures and their question, as it makes them now.
        tokens: The most vision tokens there may be.

    Returns:
        What Qwen's processor calls `max_pixels`: a multiple of a token's pixels, at most what the processor has now.

    Raises:
        SettingError: If even the smallest pictures have more tokens.
        UnsupportedError: If the processor scales pictures in another way.
    """
    images: Any = getattr(loaded.processor, "image_processor", None)
    size: Any = getattr(images, "size", None) or {}
    least, most = size.get("shortest_edge"), size.get("longest_edge")  # pixels, in spite of their names
    if not hasattr(images, "merge_size") or least is None or most is None:
        raise UnsupportedError(
            f"{type(loaded.processor).__name__} has no max_pixels: how many tokens a picture has does not follow from "
            "its pixels alone. Drop tokens instead, with a budget."
        )
    step = (images.patch_size * images.merge_size) ** 2  # pixels of a token

    def tokens_at(pixels: int) -> int:
        processor = copy.copy(loaded.processor)
        processor.image_processor = scaled = copy.copy(images)
        scaled.size = type(size)(shortest_edge=min(least, pixels), longest_edge=pixels)
        return prepare(Loaded(loaded.model, processor, loaded.name), prompt.conversation).vision_tokens

    if (floor := tokens_at(step)) > tokens:
        raise SettingError(f"The fewest vision tokens that this prompt can have is {floor}; got {tokens}.")
    # More pixels never make fewer tokens, so the most for which they fit is found by halving.
    fits, above = 1, most // step + 1
    while above - fits > 1:
        middle = (fits + above) // 2
        if tokens_at(middle * step) <= tokens:
            fits = middle
        else:
            above = middle
    return int(fits * step)
