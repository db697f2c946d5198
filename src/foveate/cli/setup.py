"""What `generate` and `compare` do before the first answer: check everything, load, and solve the schedules."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from foveate._version import __version__
from foveate.cli.choose import named
from foveate.cli.loading import Loaded, load, quiet
from foveate.cli.media import as_seen, load_media
from foveate.cli.options import EMBEDDED, BudgetOptions, ModelOptions, VideoOptions
from foveate.cli.pictures import Picture
from foveate.cli.prompt import prepare, reads_videos, vision_sizes
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.core.grid import Grid, grids_of
from foveate.cost import Cost, cost
from foveate.engine.trace import Trace
from foveate.errors import BudgetError
from foveate.methods.base import Method
from foveate.registry import families, family_for
from foveate.video import Clip

__all__ = ["Setup", "set_up"]


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything ready for a question.

    Attributes:
        media: What is looked at, in order.
        prompt: The question.
        loaded: The model.
        inputs: What the model gets.
        text_tokens: Tokens of the prompt that are not vision tokens.
        sizes: Vision tokens of each image or video, or of all together.
        methods: The settings to run, by the name the user gave.
        infeasible: Why a method cannot meet the budget, by its name.
        asked: The retention that was asked of each method, by its name; None where it was not.
    """

    media: list[Picture | Clip]
    prompt: str
    loaded: Loaded
    inputs: Any
    text_tokens: int
    sizes: tuple[int, ...]
    methods: dict[str, Method]
    infeasible: dict[str, str]
    asked: dict[str, float | None]

    @property
    def depth(self) -> int:
        """Decoder layers."""
        return int(self.loaded.model.config.get_text_config().num_hidden_layers)

    @property
    def shown(self) -> list[Image.Image | Clip]:
        """What `Trace.show` draws on."""
        return [one if isinstance(one, Clip) else one.image for one in self.media]

    @property
    def clips(self) -> list[Clip]:
        """The videos among it."""
        return [one for one in self.media if isinstance(one, Clip)]

    def cost(self, method: Method | None, trace: Trace | None = None) -> Cost:
        """What this prompt costs with a method, or without any; some methods' counts only a trace of it tells."""
        config = self.loaded.model.config
        kind = families()[config.model_type]
        pictures = self._by_kind(lambda modality, _: kind.tower_images(config, modality, self.inputs))
        if pictures is not None and len(pictures) != len(self.sizes):  # only the images' sum is known
            pictures = [sum(pictures)]
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

    @property
    def _kinds(self) -> list[str]:
        """What each image of the prompt is to the model: "image" or "video"."""
        kinds: list[str] = []
        for one in self.media:
            if not isinstance(one, Clip):
                kinds.append("image")
            elif reads_videos(self.loaded.processor):
                kinds.append("video")
            else:
                kinds += ["image"] * len(one)
        return kinds

    def _by_kind(self, ask: Callable[[str, list[int]], Sequence[Any] | None]) -> list[Any] | None:
        """What the family says of images and of videos of these sizes, in the order of the prompt; None if nothing."""
        kinds, found = self._kinds, {}
        for kind in set(kinds):
            told = ask(kind, [size for size, mine in zip(self.sizes, kinds, strict=False) if mine == kind])
            if told is None or len(told) != kinds.count(kind):
                return None
            found[kind] = iter(told)
        return [next(found[kind]) for kind in kinds]

    def _grids(self) -> list[tuple[Grid, ...]] | None:
        """Rows and columns of each image's or frame's tokens, where they are known."""
        if len(self.sizes) != len(self._kinds):  # only the images' sum is known
            return None
        family = family_for(self.loaded.model)
        boxes = self._by_kind(lambda kind, sizes: family.boxes(kind, self.inputs, sizes))
        places = [one for one in boxes or () if one is not None]
        return [grids_of(one) for one in places] if len(places) == len(self.sizes) else None

    def to_dict(self) -> dict[str, Any]:
        """The input as plain values."""
        return {
            "foveate": __version__,
            "model": self.loaded.to_dict(),
            "images": [str(one.path) for one in self.media if isinstance(one, Picture)],
            "videos": [
                {"path": str(clip.path), "frames": len(clip), "seconds": list(clip.seconds), "note": clip.note}
                for clip in self.clips
            ],
            "prompt": self.prompt,
            "text_tokens": self.text_tokens,
            "vision_tokens": list(self.sizes),
        }


def set_up(
    files: Sequence[Path],
    prompt: str | None,
    names: Sequence[str],
    models: ModelOptions,
    budgets: BudgetOptions,
    videos: VideoOptions,
    *,
    every: bool = False,
) -> Setup:
    """Read the files, load the model and solve each method's schedule for this very input.

    With `every`, a method that cannot meet the budget is noted as infeasible, as long as another can.

    Raises:
        FoveateError: Of the kind that fits, cheapest checks first.
    """
    if models.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {models.max_new_tokens}: an answer has at least one token.")
    chosen = named(names, budgets)
    files, prompt = _question(files, prompt, models)
    media = load_media(files, videos)
    loaded = load(models)
    native = reads_videos(loaded.processor)
    media = as_seen(media, videos, native)
    with busy("Preparing the pictures"), quiet():
        inputs = prepare(loaded, [one if isinstance(one, Clip) else one.image for one in media], prompt)
        count = sum(1 if native or isinstance(one, Picture) else len(one) for one in media)
        sizes = vision_sizes(loaded.model.config, inputs["input_ids"], count)
    _check_length(loaded.model.config.get_text_config(), int(inputs["input_ids"].shape[1]))
    methods: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    asked: dict[str, float | None] = {}
    for name, one in chosen.items():
        try:
            methods[name] = one.solved(
                loaded.model.config, tokens=budgets.budget, retention=budgets.retention, vision_tokens=sum(sizes)
            )
        except BudgetError as error:
            infeasible[name] = str(error)
            if not every or len(infeasible) == len(names):
                raise
            continue
        asked[name] = one.asked(methods[name], sum(sizes), tokens=budgets.budget, retention=budgets.retention)
    text_tokens = int(inputs["input_ids"].shape[1]) - sum(sizes)
    return Setup(media, prompt, loaded, inputs, text_tokens, sizes, methods, infeasible, asked)


def _check_length(config: Any, tokens: int) -> None:
    """Say so where a prompt has more positions than the decoder was made for; M-RoPE gives a picture fewer of them."""
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if most and tokens > most and "mrope_section" not in rope:
        note(
            f"the prompt has {tokens:,} tokens and this model was made for {most:,}: the answer may be poor. "
            "Take fewer frames or pictures."
        )


def _question(files: Sequence[Path], prompt: str | None, models: ModelOptions) -> tuple[Sequence[Path], str]:
    """What is asked about what: the user's, or the embedded model's own picture and question."""
    from foveate import embedded

    if not files and models.model == EMBEDDED:
        return [embedded.picture()], prompt or embedded.QUESTION
    if not files:
        raise UsageError("Which picture? Name image or video files; only the embedded model brings one of its own.")
    if prompt is None:
        raise UsageError('What is the question? Give it with --prompt "…".')
    return files, prompt
