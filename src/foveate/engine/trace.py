"""What was dropped where: the record of a context's prefills."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from foveate.errors import InputError, SessionError

if TYPE_CHECKING:
    from PIL import Image

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
        fit: How the processor brought the picture to the model.
        stages: The cuts, in order.
    """

    depth: int
    rows: tuple[int, ...]
    vision_tokens: tuple[int, ...]
    boxes: Sequence[Sequence[Tensor | None]] = field(repr=False, default=())
    fit: Literal["whole", "crop"] = "whole"
    stages: list[Stage] = field(default_factory=list)
    _slots: dict[int, Tensor] = field(repr=False, default_factory=dict)
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
        return [self._slots[layer].tolist() if layer in self._slots else whole for layer in range(self.depth)]

    def note_that_all_stay(self, layers: Sequence[int], tokens: Sequence[Tensor]) -> None:
        """Record cuts before these layers that leave every token."""
        counts = self.vision_tokens
        self.stages.extend(Stage("layer", layer, counts, counts, tokens) for layer in layers)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values."""
        return {
            "vision_tokens": list(self.vision_tokens),
            "tokens": self.tokens,
            "retention": self.retention,
            "kv_lengths": self.kv_lengths,
            "stages": [stage.to_dict() for stage in self.stages],
        }


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

    def to_dict(self) -> dict[str, Any]:
        """The latest prefill as plain values."""
        return self.latest.to_dict()

    def to_json(self) -> str:
        """The latest prefill as a JSON object."""
        return json.dumps(self.to_dict())

    def show(
        self,
        images: "Image.Image | str | Path | Sequence[Image.Image | str | Path]",
        sample: int = 0,
    ) -> "Image.Image":
        """The kept patches drawn on the picture, a panel a stage; merged ones tinted, where they went framed.

        Args:
            images: The picture of that sample, or all its pictures, or their paths.
            sample: Which sample of the batch.

        Returns:
            The drawing; `.save(path)` writes it, a notebook shows it.

        Raises:
            InputError: If the number of pictures is not the sample's, or its tokens have no known places.
            SessionError: If the model has not run yet.
        """
        from PIL import Image

        from foveate.viz import draw_stages

        run = self.latest
        given = [images] if isinstance(images, str | Path | Image.Image) else list(images)
        pictures = [Image.open(one) if isinstance(one, str | Path) else one for one in given]
        places = run.boxes[sample] if sample < len(run.boxes) else ()
        if len(pictures) != len(places):
            raise InputError(f"Sample {sample} has {len(places)} images; got {len(pictures)} to draw on.")
        if any(boxes is None for boxes in places):
            raise InputError("Where this model's vision tokens look is not known, so they cannot be drawn.")
        if run.fit == "crop":
            pictures = [_centre_square(picture) for picture in pictures]
        whole = run.vision_tokens[sample]
        panels = [
            (f"{_where(stage)}: {stage.after[sample]} of {whole}", stage.origin[sample], stage.assign[sample])
            for stage in run.stages
        ]
        drawn: Image.Image = draw_stages(pictures, [boxes for boxes in places if boxes is not None], panels)
        return drawn

    def __repr__(self) -> str:
        if not self.history:
            return "Trace(nothing ran yet)"
        shares = ", ".join(f"{share:.1%}" for share in self.retention)
        cuts = "; ".join(f"{_where(s)}: {sum(s.before)} to {sum(s.after)}" for s in self.stages) or "no cut"
        return f"Trace(retention {shares}; {cuts})"


def _where(stage: Stage) -> str:
    """A stage's place in words."""
    return {"tower": "vision tower", "projector": "projector", "kv": "decoding"}.get(
        stage.where, f"before layer {stage.layer}"
    )


def _centre_square(picture: "Image.Image") -> "Image.Image":
    """The centre square, which processors that crop let the model see."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))
