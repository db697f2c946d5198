"""One call of the decoder with vision tokens in it: who is where, and who is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foveate.engine.layout import Layout
from foveate.engine.trace import Prefill, Stage
from foveate.errors import SettingError
from foveate.methods.base import Method, View

__all__ = ["Item", "Prompt", "Sample", "read_samples"]


@dataclass(slots=True)
class Item:
    """One image or video of a call: its vision tokens, and where they look (asked for late: it may be costly)."""

    length: int
    boxes: Callable[[], Tensor | None]


@dataclass(slots=True)
class Sample:
    """One sequence of the batch.

    Attributes:
        text: Columns of its other live tokens, (…,) int64, ascending.
        vision: Columns of its vision tokens as they entered, (entered,) int64, ascending.
        tokens: Which are left, ordinals into `vision`, ascending.
        sizes: Tokens left of each image, in order; None once only the device knows.
        items: Its images, in order.
        starts: Whether the call's first column is one of its vision tokens.
        ends: Whether the call's last column is.
        notes: What the method remembers (see `View.notes`).
    """

    text: Tensor
    vision: Tensor
    tokens: Tensor
    sizes: tuple[int, ...] | None
    items: list[Item]
    starts: bool = False
    ends: bool = False
    notes: dict[str, Tensor] = field(default_factory=dict)

    def rows(self) -> Tensor:
        """Columns of what is left, ascending."""
        return torch.cat((self.text, self.vision[self.tokens])).sort().values


class Prompt:
    """The state of one call with vision tokens: made before the first layer, cut between layers.

    Attributes:
        span: Columns of the call.
        samples: The batch.
        layout: The rows the coming layer processes; None while nobody has left.
        record: What the trace keeps.
    """

    def __init__(self, method: Method, samples: list[Sample], span: int, record: Prefill) -> None:
        self.method = method
        self.samples = samples
        self.span = span
        self.layout: Layout | None = None
        self.record = record
        self._cuts = frozenset(method.cuts())

    def enter(self, layer: int, hidden: Tensor) -> None:
        """Cut and observe before `layer`, whose full-length input is `hidden`, (samples, columns, width)."""
        if layer in self._cuts:
            self._cut(layer, hidden)
        if self.method.watches(layer):
            for index, sample in enumerate(self.samples):
                if len(sample.tokens):
                    self.method.observe(_view(sample, layer, hidden[index]))

    def _cut(self, layer: int, hidden: Tensor) -> None:
        before = tuple(len(sample.tokens) for sample in self.samples)
        left = False
        for index, sample in enumerate(self.samples):
            if not len(sample.tokens):
                continue
            cut = self.method.cut(_view(sample, layer, hidden[index]))
            if cut is None:
                continue
            kept = _checked(cut.kept, len(sample.tokens), self.method)
            if len(kept) == len(sample.tokens):
                continue
            left = True
            sample.notes.update({name: note[kept] for name, note in sample.notes.items()})
            sample.tokens, sample.sizes = sample.tokens[kept.to(sample.tokens.device)], cut.sizes
        if left:
            self.layout = Layout([sample.rows() for sample in self.samples])
        after = tuple(len(sample.tokens) for sample in self.samples)
        self.record.stages.append(Stage("layer", layer, before, after, [sample.tokens for sample in self.samples]))

    def finish(self) -> None:
        """Let go of what only the layers needed."""
        for sample in self.samples:
            sample.notes.clear()


def _view(sample: Sample, layer: int, hidden: Tensor) -> View:
    columns = sample.vision[sample.tokens].to(hidden.device)
    for name, note in sample.notes.items():  # a model may be spread over devices
        sample.notes[name] = note.to(hidden.device)
    return View(
        layer=layer,
        tokens=sample.tokens.to(hidden.device),
        read=lambda: hidden[columns],
        entered=sample.vision.shape[0],
        sizes=sample.sizes,
        notes=sample.notes,
    )


def _checked(kept: Tensor, count: int, method: Method) -> Tensor:
    """The kept indices, if their shape and dtype are those a cut must have (values are not read: that would sync)."""
    if kept.dim() != 1 or kept.dtype != torch.int64 or kept.shape[0] > count:
        raise SettingError(
            f"{type(method).__name__}.cut must keep a (count,) int64 tensor of at most {count} indices; "
            f"got {tuple(kept.shape)} {kept.dtype}."
        )
    return kept


def read_samples(
    masks: Sequence[tuple[Tensor, Sequence[Item]]], live: Tensor | None, device: torch.device
) -> list[Sample]:
    """The samples of a call, from its vision masks: one transfer to the host, the only one of a prefill.

    Args:
        masks: For each modality, where its tokens are, (samples, columns) bool, and its images in order.
        live: (samples, columns), nonzero where a column is no padding; None if all are live.
        device: Where the samples' tensors go.
    """
    flags = sum(mask.to(torch.int16) << (bit + 1) for bit, (mask, _) in enumerate(masks))
    alive = torch.ones_like(masks[0][0]) if live is None else live.to(masks[0][0].device) != 0
    table = (flags + alive).cpu()
    lives = table % 2 == 1
    owners = torch.full(table.shape, -1)
    items: list[Item] = []
    for bit, (_, found) in enumerate(masks):
        there = (table >> (bit + 1)) % 2 == 1
        lengths = torch.tensor([item.length for item in found])
        owners[there] = torch.repeat_interleave(torch.arange(len(found)), lengths) + len(items)
        items.extend(found)
    return [_read_sample(owner, alive, items, device) for owner, alive in zip(owners, lives, strict=True)]


def _read_sample(owner: Tensor, live: Tensor, items: Sequence[Item], device: torch.device) -> Sample:
    vision = (live & (owner >= 0)).nonzero()[:, 0]
    mine, sizes = torch.unique_consecutive(owner[vision], return_counts=True)
    return Sample(
        text=(live & (owner < 0)).nonzero()[:, 0].to(device),
        vision=vision.to(device),
        tokens=torch.arange(len(vision), device=device),
        sizes=tuple(sizes.tolist()),
        items=[items[index] for index in mine.tolist()],
        starts=bool(owner[0] >= 0),
        ends=bool(owner[-1] >= 0),
    )
