"""The embedded model: a small LLaVA trained on synthetic pictures, shipped inside the package.

With it you can try dropping, and measure its price, offline. It is not a general vision-language
model; `model/MODEL_CARD.md` says what it can do.

Importing this package loads neither torch nor transformers; `load` does.
"""

from pathlib import Path
from typing import Any

NAME = "embedded"
"""The name of the model on the command line and in `foveate.load`."""

FILMS = "embedded-films"
"""The name of its weights for films, with frames of 168 px, 144 vision tokens each; a picture is one frame."""

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
"""What can be asked about a film."""

ANSWER = "36KUM"
"""The text in `picture()`."""


def tasks_of(model: str) -> tuple[str, ...]:
    """The tasks that a model of this name is asked: about films where it takes films, else about pictures."""
    if model == FILMS:
        return FILM_TASKS
    return TASKS


def path() -> Path:
    """The folder with the model's weights, tokenizer and processor."""
    return Path(__file__).parent / "model"


def picture() -> Path:
    """The bundled demo picture, 336 x 336 px, drawn from a seed that training never uses."""
    return Path(__file__).parent / "demo.png"


def load(device: str = "cpu", dtype: Any = None) -> tuple[Any, Any]:
    """Load the model and its processor without any network access.

    Args:
        device: The device for the model.
        dtype: A torch dtype; None is float32, which is fastest on most CPUs. The weights are
            stored in bfloat16.

    Returns:
        A `LlavaForConditionalGeneration` in eval mode and its `LlavaProcessor`.
    """
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    dtype = dtype or torch.float32
    model = LlavaForConditionalGeneration.from_pretrained(path(), dtype=dtype, local_files_only=True)
    processor = AutoProcessor.from_pretrained(path(), local_files_only=True)
    return model.to(device).eval(), processor
