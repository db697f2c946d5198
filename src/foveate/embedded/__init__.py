"""The embedded model: a small LLaVA trained on synthetic pictures, shipped inside the package.

With it you can try dropping, and measure its price, offline. It is not a general vision-language
model; `model/MODEL_CARD.md` says what it can do.

Importing this package loads neither torch nor transformers; `load` does.
"""

from pathlib import Path
from typing import Any

__all__ = [
    "ANSWER",
    "FILMS",
    "FILM_TASKS",
    "NAME",
    "NAMES",
    "QUESTION",
    "TASKS",
    "for_films",
    "load",
    "path",
    "picture",
    "tasks_of",
]

NAME = "embedded"
"""The name of the model on the command line and in `foveate.load`."""

FILMS = "embedded-films"
"""The same weights for frames of 168 px, each of 144 vision tokens: for films, and where time matters."""

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

ANSWER = "PE94S"
"""The text in `picture()`."""


def tasks_of(model: str) -> tuple[str, ...]:
    """The tasks that a model of this name is asked: about films where it takes films, else about pictures."""
    return FILM_TASKS if model == FILMS else TASKS


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


def for_films(model: Any, processor: Any) -> None:
    """Change the model and its processor, in place, to pictures of half the width and height: 144 tokens each.

    Its tower learnt that size too, with the mean of each two by two position embeddings.
    """
    import torch

    vision = model.config.vision_config
    side, grid = vision.image_size // 2, vision.image_size // vision.patch_size
    place = model.model.vision_tower.embeddings
    with torch.no_grad():
        first, rest = place.position_embedding.weight.split([1, grid * grid])
        fields = rest.unflatten(0, (grid // 2, 2, grid // 2, 2)).mean((1, 3)).flatten(0, 1)
        place.position_embedding = torch.nn.Embedding(len(fields) + 1, fields.shape[1])
        place.position_embedding.weight = torch.nn.Parameter(torch.cat([first, fields]), requires_grad=False)
    place.num_patches, place.num_positions, place.image_size = len(fields), len(fields) + 1, side
    place.position_ids = torch.arange(place.num_positions, device=first.device)[None]
    vision.image_size, model.config.image_seq_length = side, len(fields)
    images = processor.image_processor
    images.size, images.crop_size = {"shortest_edge": side}, {"height": side, "width": side}
