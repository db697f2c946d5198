"""What `generate` and `compare` do before the first answer: check everything, load, and solve the schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.cli.choose import check_names, choose
from foveate.cli.loading import Loaded, load
from foveate.cli.options import EMBEDDED, BudgetOptions, ModelOptions
from foveate.cli.pictures import Picture, load_picture
from foveate.cli.prompt import prepare, vision_sizes
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.core.grid import Grid, grids_of
from foveate.cost import Cost, cost
from foveate.engine.trace import Trace
from foveate.errors import BudgetError
from foveate.methods.base import Method
from foveate.registry import families, family_for

__all__ = ["Setup", "set_up"]


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything ready for a question.

    Attributes:
        pictures: What is looked at.
        prompt: The question.
        loaded: The model.
        inputs: What the model gets.
        text_tokens: Tokens of the prompt that are not vision tokens.
        sizes: Vision tokens of each image.
        methods: The settings to run, by the name the user gave.
        infeasible: Why a method cannot meet the budget, by its name.
    """

    pictures: list[Picture]
    prompt: str
    loaded: Loaded
    inputs: Any
    text_tokens: int
    sizes: tuple[int, ...]
    methods: dict[str, Method]
    infeasible: dict[str, str]

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return int(self.loaded.model.config.get_text_config().num_hidden_layers)

    def cost(self, method: Method | None, trace: Trace | None = None) -> Cost:
        """What this prompt costs with a method, or without any; some methods' counts only a trace of it tells."""
        config = self.loaded.model.config
        pictures = families()[config.model_type].tower_images(config, "image", self.inputs)
        if pictures is not None and len(pictures) != len(self.sizes):  # only the images' sum is known
            pictures = (sum(pictures),)
        return cost(
            config,
            text_tokens=self.text_tokens,
            vision_tokens=self.sizes,
            method=method,
            tower_images=pictures,
            dtype=self.loaded.model.dtype,
            tokens=None if trace is None else [count for (count,) in trace.latest.per_layer],
            grids=self._grids(),
        )

    def _grids(self) -> list[tuple[Grid, ...]] | None:
        """Rows and columns of each image's tokens, where they are known."""
        if len(self.sizes) != len(self.pictures):  # only the images' sum is known
            return None
        boxes = family_for(self.loaded.model).boxes("image", self.inputs, self.sizes)
        places = [one for one in boxes if one is not None]
        return [grids_of(one) for one in places] if len(places) == len(boxes) else None

    def to_dict(self) -> dict[str, Any]:
        """The input as plain values."""
        return {
            "foveate": __version__,
            "model": self.loaded.to_dict(),
            "images": [str(picture.path) for picture in self.pictures],
            "prompt": self.prompt,
            "text_tokens": self.text_tokens,
            "vision_tokens": list(self.sizes),
        }


def set_up(
    images: Sequence[Path],
    prompt: str | None,
    names: Sequence[str],
    models: ModelOptions,
    budgets: BudgetOptions,
    *,
    every: bool = False,
) -> Setup:
    """Read the pictures, load the model and solve each method's schedule for this very input.

    With `every`, a method that cannot meet the budget is noted as infeasible, as long as another can.

    Raises:
        FoveateError: Of the kind that fits, cheapest checks first.
    """
    if models.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {models.max_new_tokens}: an answer has at least one token.")
    check_names(names, budgets)
    images, prompt = _question(images, prompt, models)
    pictures = [load_picture(path) for path in images]
    for picture in pictures:
        if picture.note:
            note(picture.note)
    loaded = load(models)
    with busy("Preparing the pictures"):
        inputs = prepare(loaded, [picture.image for picture in pictures], prompt)
        sizes = vision_sizes(loaded.model.config, inputs["input_ids"], len(pictures))
    methods: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    for name in names:
        try:
            methods[name] = choose(name, loaded.model.config, sum(sizes), budgets)
        except BudgetError as error:
            infeasible[name] = str(error)
            if not every or len(infeasible) == len(names):
                raise
    text_tokens = int(inputs["input_ids"].shape[1]) - sum(sizes)
    return Setup(pictures, prompt, loaded, inputs, text_tokens, sizes, methods, infeasible)


def _question(images: Sequence[Path], prompt: str | None, models: ModelOptions) -> tuple[Sequence[Path], str]:
    """What is asked about what: the user's, or the embedded model's own picture and question."""
    from foveate import embedded

    if not images and models.model == EMBEDDED:
        return [embedded.picture()], prompt or embedded.QUESTION
    if not images:
        raise UsageError("Which picture? Name image files; only the embedded model brings one of its own.")
    if prompt is None:
        raise UsageError('What is the question? Give it with --prompt "…".')
    return images, prompt
