"""What was dropped where: the record of a context's prefills."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from foveate.errors import SessionError

if TYPE_CHECKING:
    from PIL import Image

    from foveate.viz.prefill import Media

__all__ = ["Prefill", "Stage", "Trace"]


@dataclass(eq=False)
class Stage:
    """One cut of one prefill.

    Attributes:
        where: "tower" for what the vision tower or the projector left, "layer" for a cut before a decoder layer, "kv"
            for the cache cut after prefill.
        layer: The first decoder layer (0-based) that sees fewer tokens; None for the others.
        before: Vision tokens that arrived, one count a sample.
        after: Vision tokens that went on.
    """

    where: Literal["tower", "projector", "layer", "kv"]
    layer: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    _origin: Sequence[Tensor] = field(repr=False)
    _assign: Sequence[Tensor | None] = field(repr=False, default=())

    @property
    def place(self) -> str:
        """Where it is, in words."""
        names = {"tower": "vision tower", "projector": "projector", "kv": "decoding"}
        return names.get(self.where, f"before layer {self.layer}")

    @cached_property
    def origin(self) -> list[Tensor]:
        """The token each row that went on stands for, in row order: an int64 tensor (on the CPU) a sample.

        Ordinals among the sample's vision tokens as they entered the model; −1 for a CLS, the target for a merged row.
        """
        return [origin.cpu() for origin in self._origin]

    @cached_property
    def kept(self) -> list[Tensor]:
        """The same, ascending, without rows that are no token of their own."""
        return [origin[origin >= 0].sort().values for origin in self.origin]

    @cached_property
    def merged(self) -> list[list[Tensor]]:
        """Which tokens went into each row that went on: for each sample, an ascending int64 tensor a row."""
        return [
            [(assign == row).nonzero()[:, 0] for row in range(len(origin))]
            if assign is not None
            else list(origin[:, None])
            for origin, assign in zip(self.origin, self.assign, strict=True)
        ]

    @cached_property
    def assign(self) -> list[Tensor | None]:
        """The row each of a sample's vision tokens went into, −1 if it was dropped; None where nothing is merged."""
        given = self._assign or [None] * len(self._origin)
        return [None if assign is None else assign.cpu() for assign in given]

    def to_dict(self) -> dict[str, Any]:
        """The stage as plain values; `assign` only where something was merged."""
        told: dict[str, Any] = {
            "where": self.where,
            "layer": self.layer,
            "before": list(self.before),
            "after": list(self.after),
            "kept": [tokens.tolist() for tokens in self.kept],
        }
        if any(assign is not None for assign in self.assign):
            told["origin"] = [tokens.tolist() for tokens in self.origin]
            told["assign"] = [None if assign is None else assign.tolist() for assign in self.assign]
        return told


@dataclass(eq=False)
class Prefill:
    """One prompt's way through the decoder.

    Attributes:
        depth: Decoder layers.
        rows: Prompt tokens of each sample that are no padding, earlier turns included.
        vision_tokens: Vision tokens of each sample in this call.
        boxes: For each sample, each of its images: where every token looks, or None (see `Family.boxes`).
        frames: For each sample, each of its images or videos: vision tokens of each frame; empty where nobody knows.
        videos: For each sample, which of its images are videos.
        fit: How the processor brought the picture to the model.
        stages: The cuts, in order.
    """

    depth: int
    rows: Sequence[int]
    vision_tokens: tuple[int, ...]
    boxes: Sequence[Sequence[Tensor | None]] = field(repr=False, default=())
    frames: Sequence[Sequence[tuple[int, ...]]] = field(repr=False, default=())
    videos: Sequence[Sequence[bool]] = field(repr=False, default=())
    fit: Literal["whole", "crop"] = "whole"
    stages: list[Stage] = field(default_factory=list)
    _held: dict[int, int] = field(repr=False, default_factory=dict)  # the most rows of layers that hold less than all
    _slots: dict[int, Callable[[], list[int]]] = field(repr=False, default_factory=dict)  # of pruned layers, …
    _dead: tuple[int, ...] = field(repr=False, default=())  # … and how many of them are the prompt's padding
    _cached: bool = True

    @cached_property
    def per_layer(self) -> list[tuple[int, ...]]:
        """Vision tokens each decoder layer processes, one count a sample."""
        counts, now = [], self.vision_tokens
        cuts = {stage.layer: stage.after for stage in self.stages if stage.where == "layer"}
        entered = [stage.after for stage in self.stages if stage.where in ("tower", "projector")]
        now = entered[-1] if entered else now
        for layer in range(self.depth):
            now = cuts.get(layer, now)
            counts.append(now)
        return counts

    @property
    def tokens(self) -> list[float]:
        """Mean vision tokens a decoder layer processes, one value a sample."""
        return [sum(layer[sample] for layer in self.per_layer) / self.depth for sample in range(len(self.rows))]

    @property
    def retention(self) -> list[float]:
        """The same as a share of the sample's vision tokens; 1 for a sample without any."""
        return [tokens / count if count else 1.0 for tokens, count in zip(self.tokens, self.vision_tokens, strict=True)]

    @cached_property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens in the KV cache after prefill: `kv_lengths[layer][sample]`, padding not counted.

        0 for a layer that caches a state and no tokens; empty if the model ran without a cache.
        """
        if not self._cached:
            return []
        whole = list(self.rows)
        pruned = {
            layer: [slots - dead for slots, dead in zip(count(), self._dead, strict=True)]
            for layer, count in self._slots.items()
        }
        held = {layer: [min(rows, most) for rows in whole] for layer, most in self._held.items()}
        return [pruned.get(layer, held.get(layer, whole)) for layer in range(self.depth)]

    def kept_by_frame(self, sample: int = 0) -> list[tuple[int, ...]]:
        """How many tokens of each frame a sample has left behind each stage; an image counts as one frame.

        Empty where the family does not say which frame a token is of.
        """
        sizes = [size for frames in self.frames[sample] for size in frames] if sample < len(self.frames) else []
        if sum(sizes) != self.vision_tokens[sample]:
            return []
        owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        return [
            tuple(torch.bincount(owners[stage.kept[sample]], minlength=len(sizes)).tolist()) for stage in self.stages
        ]

    def note_that_all_stay(self, layers: Sequence[int]) -> None:
        """Record cuts before these layers that leave every token."""
        counts = self.vision_tokens
        tokens = [torch.arange(count) for count in counts]
        self.stages.extend(Stage("layer", layer, counts, counts, tokens) for layer in layers)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values; what each frame has left only where there is a video."""
        told = {
            "vision_tokens": list(self.vision_tokens),
            "tokens": self.tokens,
            "retention": self.retention,
            "kv_lengths": self.kv_lengths,
            "stages": [stage.to_dict() for stage in self.stages],
        }
        if any(any(videos) for videos in self.videos):
            told["kept_by_frame"] = [self.kept_by_frame(sample) for sample in range(len(self.rows))]
        return told


class Trace:
    """What a context dropped: its attributes are those of the latest prefill.

    Attributes:
        history: Every prefill of the context, oldest first.
    """

    def __init__(self) -> None:
        self.history: list[Prefill] = []

    @property
    def latest(self) -> Prefill:
        """The latest prefill.

        Raises:
            SessionError: If the model has not run yet.
        """
        if not self.history:
            raise SessionError("Nothing to show yet: call the model inside the context first.")
        return self.history[-1]

    @property
    def stages(self) -> list[Stage]:
        """The cuts of the latest prefill, in order; empty before the first."""
        return self.history[-1].stages if self.history else []

    @property
    def vision_tokens(self) -> list[int]:
        """Vision tokens of each sample."""
        return list(self.latest.vision_tokens)

    @property
    def tokens(self) -> list[float]:
        """Mean vision tokens a decoder layer processes, one value a sample."""
        return self.latest.tokens

    @property
    def retention(self) -> list[float]:
        """Mean share of the vision tokens a decoder layer processes, one value a sample."""
        return self.latest.retention

    @property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens in the KV cache after prefill: `kv_lengths[layer][sample]`."""
        return self.latest.kv_lengths

    def kept_by_frame(self, sample: int = 0) -> list[tuple[int, ...]]:
        """How many tokens of each frame a sample has left behind each stage; an image counts as one frame."""
        return self.latest.kept_by_frame(sample)

    def to_dict(self) -> dict[str, Any]:
        """The latest prefill as plain values."""
        return self.latest.to_dict()

    def to_json(self) -> str:
        """The latest prefill as a JSON object."""
        return json.dumps(self.to_dict())

    def show(self, images: "Media", sample: int = 0) -> "Image.Image":
        """The kept patches drawn on the picture, a panel a stage; merged ones tinted, where they went framed.

        A clip is drawn as a contact sheet a stage, its frames in a grid with their times, above a histogram of the
        frames that the kept tokens are of.

        Args:
            images: The picture of that sample, or its path, or its clip (see `foveate.video.read`); or all of them, in
                order. The frames of a video also go as a list of pictures, if the sample has nothing else, or as one
                array, (frames, height, width, 3) uint8. A clip may also stand for as many pictures as it has frames.
            sample: Which sample of the batch.

        Returns:
            The drawing; `.save(path)` writes it, a notebook shows it.

        Raises:
            InputError: If the number of pictures or frames is not the sample's, or its tokens have no known places.
            SessionError: If the model has not run yet.
        """
        from foveate.viz.prefill import show

        return show(self.latest, images, sample)

    def __repr__(self) -> str:
        if not self.history:
            return "Trace(nothing ran yet)"
        shares = ", ".join(f"{share:.1%}" for share in self.retention)
        cuts = "; ".join(f"{s.place}: {sum(s.before)} to {sum(s.after)}" for s in self.stages) or "no cut"
        return f"Trace(retention {shares}; {cuts})"
