"""The samples of a call as the host knows them: where their vision tokens are, and whose."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.engine.items import Item
from foveate.errors import UnsupportedError

__all__ = ["Sample", "read_samples"]


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
        text_after: How many of `text` come after the last token of each of these.
        whole: Whether each of these has no text between its tokens.
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
    items: list[Item]
    sizes: tuple[int, ...]
    text_after: tuple[int, ...]
    whole: tuple[bool, ...]
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


def read_samples(
    masks: Sequence[tuple[Tensor, Sequence[Item]]], live: Tensor | None, by_frame: bool = False
) -> list[Sample]:
    """The samples of a call, from its vision masks: one transfer to the host, the only one of a prefill.

    Args:
        masks: For each modality, where its tokens are, (samples, columns) bool, and its images in order.
        live: (samples, columns), nonzero where a column is no padding; None if all are live.
        by_frame: Whether their `sizes` are those of frames.
    """
    flags = sum(mask.to(torch.int16) << (bit + 1) for bit, (mask, _) in enumerate(masks))
    alive = torch.ones_like(masks[0][0]) if live is None else live.to(masks[0][0].device) != 0
    table = (flags + alive).cpu()
    lives = table % 2 == 1
    owners, fixed = torch.full(table.shape, -1), torch.zeros(table.shape, dtype=torch.bool)
    items: list[Item] = []
    for bit, (_, found) in enumerate(masks):
        there = (table >> (bit + 1)) % 2 == 1
        lengths = torch.tensor([item.length for item in found])
        owners[there] = torch.repeat_interleave(torch.arange(len(found)), lengths) + len(items)
        if any(len(item.fixed) for item in found):
            fixed[there] = torch.cat([_marked(item) for item in found])
        items.extend(found)
    return [_read_sample(*of, items, by_frame) for of in zip(owners, lives, fixed, strict=True)]


def _marked(item: Item) -> Tensor:
    """Which of its tokens always stay, (tokens,) bool."""
    marks = torch.zeros(item.length, dtype=torch.bool)
    marks[list(item.fixed)] = True
    return marks


def _read_sample(owner: Tensor, live: Tensor, fixed: Tensor, items: Sequence[Item], by_frame: bool) -> Sample:
    # Generation reads the row before a new token, also where that is padding (on the right of the prompt).
    read = ~live & torch.cat((live[1:], live.new_ones(1))) & (live.cumsum(0) > 0)
    text = ((live & ((owner < 0) | fixed)) | read).nonzero()[:, 0]
    every = live & (owner >= 0)
    vision = (every & ~fixed).nonzero()[:, 0]
    ordinals = every.cumsum(0) - 1
    mine, counts = torch.unique_consecutive(owner[vision], return_counts=True)
    apart = (vision.diff() > 1) | (owner[vision].diff() != 0)
    found = [items[index] for index in mine.tolist()]
    if any(item.leaves and item.free != size for item, size in zip(found, counts.tolist(), strict=True)):
        raise UnsupportedError("An image that the tower has reduced is partly masked; pass its whole attention_mask.")
    frames = tuple(itertools.chain(*(item.free_frames for item in found))) if by_frame else None
    if frames is not None and sum(frames) != len(vision):
        raise UnsupportedError(
            "Where this video's frames begin cannot be told, so nothing can be kept by frame: its family does not say "
            "where its tokens look, or it is partly masked. Use scope='image' or 'sample'."
        )
    sizes = frames or tuple(counts.tolist())
    lengths = torch.tensor(sizes, dtype=torch.int64)
    ends = lengths.cumsum(0)
    first, last = (torch.searchsorted(text, vision[at.clamp(0, len(vision) - 1)]) for at in (ends - lengths, ends - 1))
    return Sample(
        live=int(live.sum()),
        text=text,
        vision=vision,
        runs=torch.cat((vision.new_zeros(min(1, len(vision))), apart.cumsum(0))),
        items=found,
        sizes=sizes,
        text_after=tuple((len(text) - last).tolist()),
        whole=tuple((first == last).tolist()),
        frames=frames,
        starts=bool(owner[0] >= 0),
        ends=bool(owner[-1] >= 0),
        ordinals=(ordinals[vision], ordinals[every & fixed]) if fixed.any() else None,
    )
