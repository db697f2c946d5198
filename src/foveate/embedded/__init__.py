"""The embedded model: a small LLaVA trained on synthetic pictures, shipped inside the package.

Use it to try dropping offline and to measure what dropping costs in quality. It is not a general vision-language model;
`model/MODEL_CARD.md` lists what it can do.

Importing this package imports neither torch nor transformers; `load` does.
"""

from pathlib import Path
from typing import Any

NAME = "embedded"
"""The name of the model on the command line and in `foveate.load`."""

FILMS = "embedded-films"
"""The name of the same weights for films, with frames of 168 px and 144 vision tokens. A picture is one frame."""

NAMES = (NAME, FILMS)

QUESTION = "What does the text say?"
"""A question about `picture()` that the full model answers correctly."""

TASKS = (
    "colour",
    "shape",
    "count",
    "existence",
    "quadrant",
    "relation",
    "read text",
    "character",
    "text quadrant",
    "list left to right",
    "list top to bottom",
)

FILM_TASKS = ("first", "last", "order", "brief", "ever", "film text")
"""The tasks about films; `TASKS` are those about pictures."""

ANSWER = "36KUM"
"""The text in `picture()`."""


STRANGE = (
    "the embedded model knows only drawings of shapes and words, so its answer means nothing here: load another model"
)
"""The note on a picture that is not drawn."""


def tasks_of(model: str) -> tuple[str, ...]:
    """Return the tasks of a model: those about films for `FILMS`, else those about pictures."""
    return FILM_TASKS if model == FILMS else TASKS


def path() -> Path:
    """Return the folder with the model's weights, tokenizer and processor."""
    return Path(__file__).parent / "model"


def picture() -> Path:
    """Return the path of the demo picture, 336 x 336 px, drawn with a seed that training never uses."""
    return Path(__file__).parent / "demo.png"


def is_drawn(image: Any) -> bool:
    """Return whether a picture may be one of `scenes` or `films`: a square of whole patches with little fine detail.

    Of 6,000 of those, half as JPEG, none came to more than 38 edges a row and 1,500 in the last sum; the crowded ones
    for training can. Four of five photographs, cut to 336 x 336 pixels, do. Drawings of this size by others pass too.

    Args:
        image: A PIL image, RGB.
    """
    import numpy as np

    if image.width != image.height or image.width % 14 or image.width > 672:
        return False
    pixels = np.asarray(image, np.int16)
    # From the pixel above and the one on the left: (height - 1, width - 1), in levels of 255.
    steps = np.maximum(abs(np.diff(pixels, axis=0))[:, 1:], abs(np.diff(pixels, axis=1))[1:]).max(axis=-1)
    counts = np.bincount((pixels >> 4).reshape(-1, 3) @ (256, 16, 1))  # of 4,096 colours
    others = 1 - np.sort(counts)[-32:].sum() / counts.sum()
    edges, soft = (steps > 24).sum(), ((steps > 32) & (steps < 64)).sum()
    return bool(edges <= 55 * image.width and soft * others <= 1_900)


def load(device: str = "cpu", dtype: Any = None) -> tuple[Any, Any]:
    """Load the model and its processor without network access.

    Args:
        device: The device for the model.
        dtype: A torch dtype. None means float32, which is fastest on most CPUs. The weights are stored in bfloat16.

    Returns:
        A `LlavaForConditionalGeneration` in eval mode and its `LlavaProcessor`.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    dtype = dtype or torch.float32
    model = LlavaForConditionalGeneration.from_pretrained(path(), dtype=dtype, local_files_only=True)
    processor = AutoProcessor.from_pretrained(path(), local_files_only=True)
    return model.to(device).eval(), processor
