"""The samples of a call as the host knows them: where their vision tokens are, and whose."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.engine.media import MediaTokens
from foveate.errors import UnsupportedError

__all__ = ["Sample", "read_samples"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sequence of the batch as it enters the decoder; its tensors are on the host.

    Attributes:
        live: Columns that are no padding.
        text: Columns of its other live tokens, (…,) int64, ascending; and of padding whose output somebody reads.
        vision: Columns of its vision tokens, (entered,) int64, ascending; those always kept are text.
        runs: Which run of columns each of these is in, (entered,) int64, ascending; a run has one image.
        items: Its images, in order.
        sizes: Vision tokens of each, or of each frame where the method goes by frame.
        text_after: How many of `text` that are no padding come after the last token of each of these.
        text_from: How many come after the first: more where text stands between its tokens.
        frames: `sizes` if the method goes by frame.
        starts: Whether the call's first column is one of its vision tokens.
        ends: Whether the call's last column is.
        ordinals: Which of all its vision tokens `vision` are, (entered,) int64, and which always stay; None if none
            does.
    """

    live: int
    text: Tensor
    vision: Tensor
    runs: Tensor
    items: list[MediaTokens]
    sizes: tuple[int, ...]
    text_after: tuple[int, ...]
    text_from: tuple[int, ...]
    frames: tuple[int, ...] | None = None
    starts: bool = False
    ends: bool = False
    ordinals: tuple[Tensor, Tensor] | None = None

    @property
    def fixed(self) -> int:
        """Vision tokens that always stay."""
        return 0 if self.ordinals is None else len(self.ordinals[1])

    @property
    def vision_tokens(self) -> int:
        """All its vision tokens."""
        return len(self.vision) + self.fixed

    @property
    def rows(self) -> int:
        """Rows of the decoder's first layer if nobody leaves."""
        return len(self.text) + len(self.vision)

    @property
    def entered_sizes(self) -> tuple[int, ...]:
        """Vision tokens that may leave, of each image (or frame)."""
        return self.frames or tuple(item.free for item in self.items)

    @property
    def started_sizes(self) -> tuple[int, ...]:
        """Rows of each that enter the decoder."""
        return self.frames or tuple(item.started for item in self.items)

    @property
    def parted(self) -> bool:
        """Whether text stands between the tokens of an image."""
        return bool(len(self.runs)) and int(self.runs[-1]) + 1 > len(self.items)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def read_samples(
    masks: Sequence[tuple[Tensor, Sequence[MediaTokens]]], live: Tensor | None, by_frame: bool = False
) -> list[Sample]:
    """The samples of a call, from its vision masks: one transfer to the host, the only one of a prefill.

    Args:
        masks: For each modality, where its tokens are, (samples, columns) bool, and its images in order.
        live: (samples, columns), nonzero where a column is no padding; None if all are live.
        by_frame: Whether their `sizes` are those of frames.
    """
    flags = sum(mask.to(torch.int16) << (bit + 1) for bit, (mask, _) in enumerate(masks))
    alive = torch.ones_like(masks[0][0]) if live is None else live.to(masks[0][0].device) != 0
    table = (flags + alive).cpu().numpy()
    lives = table % 2 == 1
    owners, fixed = np.full(table.shape, -1), np.zeros(table.shape, bool)
    items: list[MediaTokens] = []
    for bit, (_, found) in enumerate(masks):
        there = (table >> (bit + 1)) % 2 == 1
        owners[there] = np.repeat(np.arange(len(found)), [item.length for item in found]) + len(items)
        if any(len(item.fixed) for item in found):
            fixed[there] = np.concatenate([_marked(item) for item in found])
        items.extend(found)
    return [_read_sample(*of, items, by_frame) for of in zip(owners, lives, fixed, strict=True)]


def _marked(item: MediaTokens) -> Array:
    """Which of its tokens always stay, (tokens,) bool."""
    marks = np.zeros(item.length, bool)
    marks[list(item.fixed)] = True
    return marks


def _read_sample(owner: Array, live: Array, fixed: Array, items: Sequence[MediaTokens], by_frame: bool) -> Sample:
    # Generation reads the row before a new token, also where that is padding (on the right of the prompt).
    read = ~live & np.append(live[1:], True) & (live.cumsum() > 0)
    text = np.flatnonzero((live & ((owner < 0) | fixed)) | read)
    every = live & (owner >= 0)
    vision = np.flatnonzero(every & ~fixed)
    mine = owner[vision]
    changes = np.flatnonzero(np.diff(mine, prepend=-1))  # where an image begins
    counts = np.diff(changes, append=len(vision)).tolist()
    found = [items[index] for index in mine[changes]]
    if any(item.leaves and item.free != size for item, size in zip(found, counts, strict=True)):
        raise UnsupportedError("An image that the tower has reduced is partly masked; pass its whole attention_mask.")
    frames = tuple(itertools.chain(*(item.free_frames for item in found))) if by_frame else None
    if frames is not None and sum(frames) != len(vision):
        raise UnsupportedError(
            "Where this video's frames begin cannot be told, so nothing can be kept by frame: its family does not say "
            "where its tokens look, or it is partly masked. Use scope='image' or 'sample'."
        )
    sizes = frames or tuple(counts)
    ends = np.cumsum(sizes, dtype=np.int64)
    asking = text[live[text]]
    first, last = (
        len(asking) - np.searchsorted(asking, vision[at.clip(0, len(vision) - 1)])
        for at in (np.concatenate(([0], ends))[: len(ends)], ends - 1)
    )
    apart = (np.diff(vision) > 1) | (np.diff(mine) != 0)
    ordinals = every.cumsum() - 1
    return Sample(
        live=int(live.sum()),
        text=torch.from_numpy(text),
        vision=torch.from_numpy(vision),
        runs=torch.from_numpy(np.concatenate((np.zeros(min(1, len(vision)), np.int64), apart.cumsum()))),
        items=found,
        sizes=sizes,
        text_after=tuple(last.tolist()),
        text_from=tuple(first.tolist()),
        frames=frames,
        starts=bool(owner[0] >= 0),
        ends=bool(owner[-1] >= 0),
        ordinals=(torch.from_numpy(ordinals[vision]), torch.from_numpy(ordinals[every & fixed]))
        if fixed.any()
        else None,
    )
