"""One sample as a model gets it: its pictures, its text, its tensors, and what it costs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from foveate._transformers import PreTrainedConfig
from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Card
from foveate.ask.pictures import Picture
from foveate.contract.method import Method
from foveate.core.grid import Grid, grids_of
from foveate.cost import Cost, RunCounts, cost
from foveate.engine.trace import Trace
from foveate.video import Clip

TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question as a model gets it.

    Attributes:
        card: The model it was made for, without its weights.
        conversation: What is said and shown.
        inputs: The model's arguments: tensors of one sample, on its device.
        media: Its pictures and films, in order; of a film whose frames go in as pictures, the film.
        notes: What the user should know, such as that a picture is cropped.
    """

    card: Card
    conversation: Conversation
    inputs: Mapping[str, Tensor]
    media: tuple[Picture | Clip, ...] = ()
    notes: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Pickled with its tensors on the host, as another process may have no such device."""
        return {
            **vars(self),
            "inputs": {name: value if value.is_meta else value.cpu() for name, value in self.inputs.items()},
        }

    @property
    def text(self) -> str:
        """The last text that the user said: the question."""
        turns = [parts for role, parts in self.conversation.turns if role == "user"]
        texts = [value for parts in turns for kind, value in parts if kind == "text"]
        return texts[-1] if texts else ""

    @property
    def single_turn(self) -> bool:
        """Whether it is one question, and goes on from no answer."""
        return not any(role == "assistant" for role, _ in self.conversation.turns)

    @property
    def shown(self) -> list[Image.Image | Clip]:
        """What `Trace.show` draws on: the media as they are shown to the model."""
        return [medium if isinstance(medium, Clip) else medium.image for medium in self.media]

    @property
    def clips(self) -> list[Clip]:
        """The films among the media."""
        return [medium for medium in self.media if isinstance(medium, Clip)]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Vision tokens of each image or video; where a template does not tell them apart, of all together."""
        runs = runs_of(self.card.config, self.inputs["input_ids"][0])
        if len(runs) in (0, len(self.kinds)):
            return runs
        return (sum(runs),)

    @property
    def vision_tokens(self) -> int:
        """Vision tokens in all."""
        return sum(self.sizes)

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def text_tokens(self) -> int:
        """Tokens that are no vision tokens."""
        return self.tokens - self.vision_tokens

    @cached_property
    def kinds(self) -> list[str]:
        """What each of its media is to the model: "image" or "video"."""
        return [kind for kind, _ in self.conversation.parts if kind != "text"]

    def warn(self, stacklevel: int) -> None:
        """Warn the caller of what the user should know."""
        for note in self.notes:
            warnings.warn(note, stacklevel=stacklevel + 1)

    def cost(self, method: Method | None = None, trace: Trace | None = None, sample: int = 0) -> Cost:
        """What this prompt costs with a method, or without any.

        Args:
            method: What drops.
            trace: Of a run: some methods' counts depend on the picture, and only a trace tells them.
            sample: Which sample of the trace it is.

        Raises:
            SettingError: If the method's counts depend on the picture and no trace tells them.
        """
        ran = RunCounts()
        if trace is not None and trace.history:
            ran = trace.history[0].ran(sample)
        return cost(
            self.card.config,
            text_tokens=self.text_tokens,
            vision_tokens=self.sizes,
            method=method,
            tower_images=self.tower_images,
            dtype=self.card.dtype,
            grids=self.grids,
            videos=self.videos,
            **ran,
        )

    def _by_kind(self, ask: Callable[[str, list[int]], Sequence[object] | None]) -> list[Any] | None:
        """What the family says of images and of videos of these sizes, in the order of the prompt; None if nothing."""
        answers = {}
        for kind in set(self.kinds):
            sizes = [size for size, other in zip(self.sizes, self.kinds, strict=False) if other == kind]
            values = ask(kind, sizes)
            if values is None or len(values) != self.kinds.count(kind):
                return None
            answers[kind] = iter(values)
        return [next(answers[kind]) for kind in self.kinds]

    @property
    def tower_images(self) -> list[int] | None:
        """How many pictures the tower encodes for each of `sizes`, where the family knows; see `foveate.cost`."""
        card = self.card
        pictures = self._by_kind(lambda kind, _: card.family.tower_images(card.config, kind, self.inputs))
        if pictures is not None and len(pictures) != len(self.sizes):  # only the images' sum is known
            return [sum(pictures)]
        return pictures

    @property
    def videos(self) -> list[bool] | None:
        """Whether each of `sizes` is a video; None where a template does not tell them apart."""
        if len(self.sizes) != len(self.kinds):
            return None
        return [kind == "video" for kind in self.kinds]

    @property
    def grids(self) -> list[tuple[Grid, ...]] | None:
        """Rows and columns of each image's or frame's tokens, where they are known."""
        if not self.sizes or len(self.sizes) != len(self.kinds):  # only the images' sum is known
            return None
        card = self.card
        boxes = self._by_kind(lambda kind, sizes: card.family.boxes(card.config, kind, self.inputs, sizes))
        places = [image for image in boxes or () if image is not None]
        if len(places) != len(self.sizes):
            return None
        return [grids_of(image) for image in places]

    def to_dict(self) -> dict[str, Any]:
        """The input as plain values."""
        images = [str(medium.path) for medium in self.media if isinstance(medium, Picture) and medium.path is not None]
        videos = [
            {"path": str(clip.path), "frames": len(clip), "seconds": list(clip.seconds), "note": clip.note}
            for clip in self.clips
        ]
        return {
            "model": self.card.to_dict(),
            "images": images,
            "videos": videos,
            "prompt": self.text,
            "text_tokens": self.text_tokens,
            "vision_tokens": list(self.sizes),
        }

    def __repr__(self) -> str:
        return f"Prompt({self.text!r:.60}, {self.vision_tokens} vision and {self.text_tokens} text tokens)"


def is_vision(config: PreTrainedConfig, ids: Tensor) -> Tensor:
    """Which ids stand for vision tokens: bool of the same shape, on the CPU."""
    return torch.isin(ids.cpu(), torch.tensor(sorted(placeholders(config))))


def placeholders(config: PreTrainedConfig) -> set[int]:
    """Ids that stand for vision tokens in a prompt."""
    ids = (getattr(config, name, None) for name in TOKENS)
    return {number for number in ids if number is not None}


def runs_of(config: PreTrainedConfig, ids: Tensor) -> tuple[int, ...]:
    """How many vision tokens stand in a row, again and again: (tokens,) ids -> a count a run.

    A run ends at a token of the text and where images go over into videos.
    """
    vision = is_vision(config, ids)
    kinds, counts = torch.unique_consecutive(torch.where(vision, ids.cpu(), -1), return_counts=True)
    return tuple(counts[kinds >= 0].tolist())
