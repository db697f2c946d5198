"""A question about pictures as a model wants it: the processor's chat template, then its tensors."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from foveate.cli.loading import Loaded
from foveate.errors import InputError, UnsupportedError
from foveate.eval.answering import placeholders

__all__ = ["prepare", "vision_sizes"]


def prepare(loaded: Loaded, images: Sequence[Image.Image], prompt: str) -> Any:
    """The model's inputs for one sample: images first, then the text, on the model's device in its dtype.

    Without a chat template the images' placeholders go before the text as it is.

    Raises:
        InputError: If the processor refuses the pictures or they grow too large.
    """
    processor, model = loaded.processor, loaded.model
    try:
        if getattr(processor, "chat_template", None):
            content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            text = f"{processor.image_token}\n" * len(images) + prompt
            inputs = processor(images=list(images), text=[text], return_tensors="pt")
    except (ValueError, ZeroDivisionError, MemoryError) as error:
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        why = error if str(error) else "out of memory"  # a strip one pixel high grows to millions of columns
        raise InputError(f"The processor of {loaded.name} refuses pictures of {sizes} pixels: {why}") from error
    return inputs.to(model.device, dtype=model.dtype)


def vision_sizes(config: Any, input_ids: Tensor, images: int) -> tuple[int, ...]:
    """Vision tokens of each image of a prompt: (1, tokens) ids -> `images` counts, or one for all together.

    Images are told apart by what stands between them; where a template puts nothing there, only their sum
    is known.

    Raises:
        UnsupportedError: If there is none, so that nothing could be dropped.
    """
    vision = placeholders(config)
    sizes: list[int] = []
    inside = False
    for token in input_ids[0].tolist():
        if token in vision:
            sizes = [*sizes[:-1], sizes[-1] + 1] if inside else [*sizes, 1]
        inside = token in vision
    if not sizes:
        raise UnsupportedError("The processor made a prompt without any vision token; is it the model's own?")
    return tuple(sizes) if len(sizes) == images else (sum(sizes),)
