"""The embedded model: a small LLaVA trained on synthetic pictures, shipped inside the package.

It exists so that dropping can be tried, and its price measured, offline and at once. It is no
general vision-language model; `model/MODEL_CARD.md` says what it can do and what not.

Importing this package loads neither torch nor transformers; `load` does.
"""

from pathlib import Path
from typing import Any

__all__ = ["ANSWER", "QUESTION", "load", "path", "picture"]

QUESTION = "What does the text say?"
"""A question about `picture()` that the full model answers rightly."""

ANSWER = "XRPMQ"
"""What is written in `picture()`."""


def path() -> Path:
    """The folder with the model's weights, tokenizer and processor."""
    return Path(__file__).parent / "model"


def picture() -> Path:
    """The bundled demo picture, 336 x 336 px, drawn from a seed that training never uses."""
    return Path(__file__).parent / "demo.png"


def load(device: str = "cpu", dtype: Any = None) -> tuple[Any, Any]:
    """Load the model and its processor without any network access.

    Args:
        device: Where the model goes.
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
