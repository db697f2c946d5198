"""What a processor makes of a film whose frames are blank: ids as they are, and tensors of shapes alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foveate.ask.pictures import Picture
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.core.patching import Patcher
from foveate.errors import InputError
from foveate.video import Clip

STEPS = ("process_image", "pad_to_square", "resize", "center_crop", "rescale", "normalize")
"""What image processors do to one picture after another."""


def prepare_blank(vlm: VLM, media: list[Picture | Clip], question: str, **showing: Any) -> Prompt:
    """What `VLM.prepare` gives, with pixels that are all 0 where there are films, in little memory if that is possible.

    Args:
        vlm: The model.
        media: Pictures, and films of blank frames.
        question: What is asked.
        showing: `frames`, `fps` and `fit`, as for `VLM.prepare`.

    Raises:
        FoveateError: As for `VLM.prepare`.
    """
    if any(isinstance(medium, Clip) for medium in media):
        images = getattr(vlm.processor, "image_processor", None)
        once = _Once()
        try:
            with Patcher() as patches, _Shapes():
                for name in STEPS:
                    if hasattr(images, name):
                        patches.wrap(images, name, once)
                return vlm.prepare(media, question, **showing)
        except InputError:  # also where a processor reads what it has not got: then with pixels
            pass
    return vlm.prepare(media, question, **showing)


class _Once:
    """Takes a step once for all arrays that are the same one: all frames are one picture. Tensors lose their pixels."""

    def __init__(self) -> None:
        self._taken: dict[str, tuple[Any, Any]] = {}

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values())
        known = [value.__array_interface__ if isinstance(value, np.ndarray) else value for value in values]
        key = f"{original.__name__} {[*kwargs]} {known}"
        if key not in self._taken:
            result = original(*args, **kwargs)
            if isinstance(result, Tensor):
                result = result.to("meta")
            self._taken[key] = result, values  # which live on, so that their places in memory are their own
        return self._taken[key][0]


class _Shapes(TorchFunctionMode):
    """Moves films of one byte to the device without memory, and has zeros for who wants to read from there."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first, *others = args or (None,)
        kwargs = kwargs or {}
        if function is Tensor.contiguous and first.dtype == torch.uint8 and first.ndim == 4 and not any(first.stride()):
            return first.to("meta")
        try:
            return function(*args, **kwargs)
        except (NotImplementedError, TypeError):
            if not (isinstance(first, Tensor) and first.is_meta):
                raise
            zero = function(torch.zeros((), dtype=first.dtype), *others, **kwargs)
            if isinstance(zero, Tensor):
                return zero.expand(first.shape)
            return np.broadcast_to(zero, first.shape)
