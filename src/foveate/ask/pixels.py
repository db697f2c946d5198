"""How large a model's processor may leave pictures, so that they make no more than so many vision tokens."""

import copy
from typing import Any

from foveate.ask.loaded import Loaded
from foveate.ask.preparing import prepare
from foveate.ask.prompt import Prompt
from foveate.errors import SettingError, UnsupportedError


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
