"""The embedded model: a small LLaVA trained on synthetic pictures, shipped inside the package.

With it you can try dropping, and measure its price, offline. It is not a general vision-language
model; `model/MODEL_CARD.md` says what it can do.

Importing this package loads neither torch nor transformers; `load` does.
"""

from pathlib import Path
from typing import Any

__all__ = ["ANSWER", "NAME", "QUESTION", "TASKS", "load", "path", "picture"]

NAME = "embedded"
"""The name of the model on the command line and in `foveate.load`."""

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

ANSWER = "XRPMQ"
"""The text in `picture()`."""


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

    model = LlavaForConditionalGeneration.from_pretrained(
        path(), dtype=torch.float32 if dtype is None else dtype, local_files_only=True
    )
    processor = AutoProcessor.from_pretrained(path(), local_files_only=True)
    return model.to(device).eval(), processor
