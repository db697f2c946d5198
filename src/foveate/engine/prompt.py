"""One call of the decoder with vision tokens in it: who is where, and who is left."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from foveate.core.grid import frames_of
from foveate.core.rank import into_runs
from foveate.engine.layout import Layout
from foveate.engine.trace import Prefill, Stage
from foveate.errors import SettingError, UnsupportedError
from foveate.methods.base import Cut, Method, Queries, View

__all__ = ["Attend", "Item", "Prompt", "Sample", "read_samples"]


@dataclass(slots=True, eq=False)
class Item:
    """One image or video of a call.

    Attributes:
        length: Its vision tokens.
        boxes: Where they look (asked for late: it may be costly).
        cut: What the tower made of them: its rows stand in the first places of the features; None if nothing.
        fixed: Which are no patches and always stay, as the CLS of a frame; nobody ranks them (`Family.always_kept`).
        video: Whether it is a video.
    """

    length: int
    boxes: Callable[[], Tensor | None]
    cut: Cut | None = None
    fixed: Sequence[int] = ()
    video: bool = False

    @property
    def free(self) -> int:
        """Its vision tokens that may leave."""
        return self.length - len(self.fixed)

    @property
    def frames(self) -> tuple[int, ...]:
        """Vision tokens of each of its frames, of which an image has one; empty where nobody knows."""
        if not self.video:
            return (self.length,)
        boxes = self.boxes()
        return () if boxes is None else frames_of(boxes)

    @property
    def free_frames(self) -> tuple[int, ...]:
        """As `frames`, of those that may leave."""
        ends = itertools.accumulate(self.frames)
        return tuple(
            size - sum(end - size <= place < end for place in self.fixed)
            for size, end in zip(self.frames, ends, strict=True)
        )

    @property
    def started(self) -> int:
        """Rows of these that enter the decoder."""
        return self.free if self.cut is None else len(self.cut.kept)

    @property
    def leaves(self) -> bool:
        """Whether the tower changed its rows."""
        return self.cut is not None and (self.cut.rows is not None or len(self.cut.kept) < self.free)


@dataclass(slots=True, eq=False)
class Sample:
    """One sequence of the batch.

    Attributes:
        live: Columns that are no padding.
        text: Columns of its other live tokens, (…,) int64, ascending; and of padding whose output somebody reads.
        vision: Columns of its vision tokens as they entered, (entered,) int64, ascending; those always kept are text.
        slots: Where the rows that are left are stored: ordinals into `vision`, ascending.
        tokens: Which tokens these rows stand for, ordinals into `vision` in row order; −1 for none of its own. The
            same as `slots` until something is merged or reordered.
        sizes: Rows left of each image, in order; None once only the device knows.
        runs: Which run of columns each of its vision tokens is in, (entered,) int64, ascending; a run has one image.
        items: Its images, in order.
        parted: Whether text stands between the tokens of an image.
        frames: Vision tokens of each frame as they entered, where the method goes by frame; `sizes` are of these then.
        starts: Whether the call's first column is one of its vision tokens.
        ends: Whether the call's last column is.
        assign: The row each of its vision tokens went into, −1 if it was dropped; None while nothing is merged.
        notes: What the method remembers (see `View.notes`).
        ordinals: Which of all its vision tokens these are, (entered,) int64, and which always stay; None if none does.
    """

    live: int
    text: Tensor
    vision: Tensor
    slots: Tensor
    tokens: Tensor
    sizes: tuple[int, ...] | None
    runs: Tensor
    items: list[Item]
    parted: bool = False
    frames: tuple[int, ...] | None = None
    starts: bool = False
    ends: bool = False
    assign: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    ordinals: tuple[Tensor, Tensor] | None = None

    @property
    def fixed(self) -> int:
        """Vision tokens that always stay."""
        return 0 if self.ordinals is None else len(self.ordinals[1])

    def rows(self) -> Tensor:
        """Columns of what is left, ascending."""
        return torch.cat((self.text, self.vision[self.slots])).sort().values

    def sources(self, rows: Tensor, span: int) -> Tensor:
        """The column whose position each of `rows` has; −1 for a row that is no token of its own."""
        origin = torch.arange(span, device=rows.device)
        source = self.vision[self.tokens.clamp(min=0)]
        origin[self.vision[self.slots]] = torch.where(self.tokens < 0, self.tokens, source)
        return origin[rows]

    def settle(self, cut: Cut) -> tuple[Cut, Tensor]:
        """A cut with its rows in the order they will be stored in, and where that is: ordinals into `vision`.

        Tokens stay in their places. Merged rows go to the first places of the run of the token they stand for; a row
        that is no token of its own, to its image's first run.
        """
        index = cut.kept.to(self.tokens.device)
        if cut.rows is None:
            return cut, self.slots[index]
        if self.sizes is None or cut.sizes is None:
            raise SettingError("A cut that merges must know how many rows each image has (Cut.sizes).")
        starts = [0, *itertools.accumulate(self.sizes)]
        firsts = [at for at, count in zip(starts, cut.sizes, strict=False) for _ in range(count)]
        of_row = torch.where(index < 0, torch.tensor(firsts, device=index.device), index)
        runs = self.runs[self.slots]
        order, places = into_runs(runs[of_row], runs)
        assign = cut.assign
        if assign is not None:
            row = order.argsort().to(assign.device)
            assign = torch.where(assign < 0, assign, row[assign.clamp(min=0)])
        notes = {name: note[order.to(note.device)] for name, note in cut.notes.items()}
        settled = Cut(index[order], cut.sizes, cut.rows[order.to(cut.rows.device)], assign, notes)
        return settled, self.slots[places]

    def told(self) -> tuple[Tensor, Tensor | None]:
        """`tokens` and `assign` as a trace tells them, which counts all vision tokens, also those always kept."""
        if self.ordinals is None:
            return self.tokens, self.assign
        free, fixed = self.ordinals
        names = torch.where(self.tokens < 0, self.tokens, free[self.tokens.clamp(min=0)])
        order = torch.cat((free[self.slots], fixed)).argsort()
        origin = torch.cat((names, fixed))[order]
        if self.assign is None:
            return origin, None
        row = order.argsort()
        assign = row.new_empty(len(free) + len(fixed))
        assign[free] = torch.where(self.assign < 0, self.assign, row[self.assign.clamp(min=0)])
        assign[fixed] = row[len(names) :]
        return origin, assign

    def take(self, cut: Cut, slots: Tensor) -> None:
        """Let leave who leaves, in everything but the stream; rows are stored in `slots`."""
        index = cut.kept.to(self.tokens.device)
        self.slots = slots
        safe = index.clamp(min=0)
        self.tokens = torch.where(index < 0, index, self.tokens[safe])
        self.notes.update({name: note[safe.to(note.device)] for name, note in self.notes.items()})
        self.notes.update(cut.notes)
        if cut.assign is not None or self.assign is not None:
            self.assign = self._assigned(cut, len(index))
        self.sizes = cut.sizes

    def _assigned(self, cut: Cut, count: int) -> Tensor:
        before = self.assign
        if before is None:
            before = torch.arange(len(self.vision), device=self.tokens.device)
        step = cut.assign
        if step is None:
            size = int(cut.kept.shape[0])
            step = torch.full((max(int(before.shape[0]), size),), -1, device=before.device)
            step[cut.kept.to(before.device)] = torch.arange(count, device=before.device)
        step = step.to(before.device)
        return torch.where(before < 0, before, step[before.clamp(min=0)])


class Attend(Protocol):
    """Computes attention rows of the layer a view is about to enter."""

    def rows(self, queries: Queries, start: int, stop: int, bidirectional: bool) -> Iterator[Tensor]: ...

    def keys(self) -> Tensor: ...


class Prompt:
    """The state of one call with vision tokens: made before the first layer, cut between layers.

    Attributes:
        span: Columns of the call.
        samples: The batch.
        layout: The rows the coming layer processes; None while nobody has left.
        layouts: The rows each layer processed, as far as the call has come.
        record: What the trace keeps.
        reindex: Whether rows are numbered anew after a cut.
        rows: Rows of each sample before anybody leaves.
        first: (samples,) int64, the first of them.
        ends: Whether any sample ends in a vision token.
    """

    def __init__(
        self,
        method: Method,
        samples: list[Sample],
        span: int,
        record: Prefill,
        reindex: bool,
        added: list[Tensor] | None = None,
    ) -> None:
        self.method = method
        self.samples = samples
        self.span = span
        self.layout: Layout | None = None
        self.layouts: list[Layout | None] = []
        self.record = record
        self.reindex = reindex
        self.ends = any(sample.ends for sample in samples)
        self.rows = tuple(len(sample.text) + len(sample.vision) for sample in samples)
        ends = [torch.cat((sample.text[:1], sample.vision[:1])) for sample in samples]
        self.first = torch.stack([end.min() if len(end) else end.new_zeros(()) for end in ends])
        self._added = added
        self._cuts = frozenset(method.cuts())

    def start(self, hidden: Tensor) -> Tensor:
        """Take what the tower has decided as a cut before layer 0.

        Args:
            hidden: The decoder's input, (samples, columns, width); an image's rows are in the first of its columns.

        Returns:
            The input, each row in the run of columns of the token that it stands for.
        """
        if not any(item.leaves for sample in self.samples for item in sample.items):
            for sample in self.samples:
                sample.notes.update(_tower_cut(sample).notes if sample.items else {})
            return hidden
        before = self._counts()
        for index, sample in enumerate(self.samples):
            if not sample.items:
                continue
            cut, slots = sample.settle(_tower_cut(sample))
            sample.take(cut, slots)
            if sample.parted:
                assert cut.rows is not None
                to, came_from = (sample.vision[places].to(hidden.device) for places in (slots, cut.rows))
                hidden = hidden.index_put((torch.full_like(to, index), to), hidden[index, came_from])
                self._move_added(index, 0, cut.rows)
        self._record("projector" if self.method.stage == "projector" else "tower", None, before)
        self.layout = self._lay_out()
        return hidden

    def enter(self, layer: int, hidden: Tensor, attend: Callable[[Tensor, int], Attend]) -> Tensor:
        """Cut and observe before `layer`.

        Args:
            layer: The coming layer.
            hidden: Its full-length input, (samples, columns, width).
            attend: Gives attention rows of this layer, from its input and for a sample.

        Returns:
            The input, with merged rows written into it.
        """
        if layer in self._cuts:
            hidden = self._cut(layer, hidden, attend)
        if self.method.watches(layer):
            for index, sample in enumerate(self.samples):
                if len(sample.tokens):
                    self.method.observe(self._view(index, layer, hidden, attend))
        self.layouts.append(self.layout)
        return hidden

    def _cut(self, layer: int, hidden: Tensor, attend: Callable[[Tensor, int], Attend]) -> Tensor:
        before = self._counts()
        left, merged = False, []
        for index, sample in enumerate(self.samples):
            if not len(sample.tokens):
                continue
            cut = self.method.cut(self._view(index, layer, hidden, attend))
            if cut is None:
                continue
            _check(cut, len(sample.tokens), self.method)
            if cut.rows is None and len(cut.kept) == len(sample.tokens):
                continue
            left = True
            cut, slots = sample.settle(cut)
            came_from = sample.slots[cut.kept.clamp(min=0).to(sample.slots.device)]
            sample.take(cut, slots)
            if cut.rows is not None:
                columns = sample.vision[sample.slots].to(hidden.device)
                merged.append((torch.full_like(columns, index), columns, cut.rows))
                self._move_added(index, layer, came_from)
        if merged:
            owners, columns, rows = (torch.cat(parts) for parts in zip(*merged, strict=True))
            hidden = hidden.index_put((owners, columns), rows.to(hidden.dtype))
        if left:
            self.layout = self._lay_out()
        self._record("layer", layer, before)
        return hidden

    def _move_added(self, index: int, layer: int, came_from: Tensor) -> None:
        """Let the later additions of merged rows go with the tokens they stand for, to the places they are in now."""
        slots, start = self.samples[index].slots, sum(len(one.vision) for one in self.samples[:index])
        for depth in range(layer, len(self._added or ())):
            assert self._added is not None
            added = self._added[depth].clone()
            added[slots.to(added.device) + start] = self._added[depth][came_from.to(added.device) + start]
            self._added[depth] = added

    def _record(self, where: str, layer: int | None, before: tuple[int, ...]) -> None:
        origin, assign = zip(*(sample.told() for sample in self.samples), strict=True)
        self.record.stages.append(Stage(where, layer, before, self._counts(), origin, assign))  # type: ignore[arg-type]

    def _counts(self) -> tuple[int, ...]:
        return tuple(len(sample.tokens) + sample.fixed for sample in self.samples)

    def _lay_out(self) -> Layout:
        rows = [sample.rows() for sample in self.samples]
        if not any(len(row) for row in rows):
            raise UnsupportedError(
                "Every token of the prompt has left, since there is no text: keep a token (min_keep=1), or add text."
            )
        if all(sample.assign is None for sample in self.samples):
            return Layout(rows)
        return Layout(rows, [sample.sources(row, self.span) for sample, row in zip(self.samples, rows, strict=True)])

    def _view(self, index: int, layer: int, hidden: Tensor, attend: Callable[[Tensor, int], Attend]) -> View:
        sample, device = self.samples[index], hidden.device
        columns = sample.vision[sample.slots].to(device)
        for name, note in sample.notes.items():  # a model may be spread over devices
            sample.notes[name] = note.to(device)
        made: list[Attend] = []

        def rows_of() -> Attend:
            if not made:
                made.append(attend(hidden, index))
            return made[0]

        return View(
            layer=layer,
            tokens=sample.tokens.to(device),
            read=lambda: hidden[index, columns],
            entered=sample.vision.shape[0],
            sizes=sample.sizes,
            entered_sizes=sample.frames or tuple(item.free for item in sample.items),
            started_sizes=sample.frames or tuple(item.started for item in sample.items),
            notes=sample.notes,
            attend=lambda queries, start, stop, both: rows_of().rows(queries, start, stop, both),
            keys_of=lambda: rows_of().keys(),
            reindex=self.reindex,
        )

    def note_cache_cut(self) -> None:
        """Record that earlier layers' caches were cut to what is left."""
        reduced = [stage.after for stage in self.record.stages if stage.layer is None]
        self._record("kv", None, (*reduced, self.record.vision_tokens)[0])

    def final(self) -> Tensor:
        """Which columns of the call the tokens left at the end stand for: (samples, columns) bool; text is."""
        device = self.samples[0].vision.device
        final = torch.ones(len(self.samples), self.span, dtype=torch.bool, device=device)
        for row, sample in zip(final, self.samples, strict=True):
            row[sample.vision] = False
            row[sample.vision[sample.tokens.clamp(min=0)]] = sample.tokens >= 0
        return final

    def finish(self) -> None:
        """Let go of what only the layers needed."""
        self.layouts.clear()
        for sample in self.samples:
            sample.notes.clear()


def _tower_cut(sample: Sample) -> Cut:
    """What the tower made of a sample's images, as one cut."""
    device, cuts, first = sample.tokens.device, [], 0
    for item in sample.items:
        cut = item.cut
        if cut is None:
            every = torch.arange(item.free, device=device)
            cut = Cut(every, (item.free,), every, every)
        count = cut.kept.shape[0]
        cuts.append(
            Cut(
                cut.kept.to(device),
                (count,),
                torch.arange(first, first + count, device=device),  # in the stream already: where
                (torch.arange(item.free) if cut.assign is None else cut.assign).to(device),
                {name: note.to(device) for name, note in cut.notes.items()},
            )
        )
        first += item.free
    joined = Cut.join(cuts, [item.free for item in sample.items])
    names = {name for cut in cuts for name in cut.notes}
    return Cut(
        joined.kept,
        joined.sizes,
        joined.rows,
        joined.assign,
        {name: torch.cat([cut.notes[name] for cut in cuts]) for name in names},
    )


def _check(cut: Cut, count: int, method: Method) -> None:
    """The shapes and dtypes a cut must have (values are not read: that would synchronise with the device)."""
    kept = cut.kept
    if kept.dim() != 1 or kept.dtype != torch.int64 or kept.shape[0] > count:
        raise SettingError(
            f"{type(method).__name__}.cut must keep a (count,) int64 tensor of at most {count} indices; "
            f"got {tuple(kept.shape)} {kept.dtype}."
        )
    if cut.rows is not None and (cut.assign is None or cut.rows.shape[0] != kept.shape[0] or len(cut.assign) != count):
        raise SettingError(
            f"{type(method).__name__}.cut gives rows, so it must give one for each of the {kept.shape[0]} kept, and an "
            f"assign of {count}; got {tuple(cut.rows.shape)} rows."
        )


def read_samples(
    masks: Sequence[tuple[Tensor, Sequence[Item]]], live: Tensor | None, device: torch.device, by_frame: bool = False
) -> list[Sample]:
    """The samples of a call, from its vision masks: one transfer to the host, the only one of a prefill.

    Args:
        masks: For each modality, where its tokens are, (samples, columns) bool, and its images in order.
        live: (samples, columns), nonzero where a column is no padding; None if all are live.
        device: Where the samples' tensors go.
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
    return [_read_sample(*of, items, device, by_frame) for of in zip(owners, lives, fixed, strict=True)]


def _marked(item: Item) -> Tensor:
    """Which of its tokens always stay, (tokens,) bool."""
    marks = torch.zeros(item.length, dtype=torch.bool)
    marks[list(item.fixed)] = True
    return marks


def _read_sample(
    owner: Tensor, live: Tensor, fixed: Tensor, items: Sequence[Item], device: torch.device, by_frame: bool
) -> Sample:
    # Generation reads the row before a new token, also where that is padding (on the right of the prompt).
    read = ~live & torch.cat((live[1:], live.new_ones(1))) & (live.cumsum(0) > 0)
    text = ((live & ((owner < 0) | fixed)) | read).nonzero()[:, 0]
    every = live & (owner >= 0)
    vision = (every & ~fixed).nonzero()[:, 0]
    ordinals = every.cumsum(0) - 1
    mine, sizes = torch.unique_consecutive(owner[vision], return_counts=True)
    apart = (vision.diff() > 1) | (owner[vision].diff() != 0)
    runs = torch.cat((vision.new_zeros(min(1, len(vision))), apart.cumsum(0)))
    slots = torch.arange(len(vision), device=device)
    found = [items[index] for index in mine.tolist()]
    if any(item.leaves and item.free != size for item, size in zip(found, sizes.tolist(), strict=True)):
        raise UnsupportedError("An image that the tower has reduced is partly masked; pass its whole attention_mask.")
    frames = tuple(itertools.chain(*(item.free_frames for item in found))) if by_frame else None
    if frames is not None and sum(frames) != len(vision):
        raise UnsupportedError(
            "Where this video's frames begin cannot be told, so nothing can be kept by frame: its family does not say "
            "where its tokens look, or it is partly masked. Use scope='image' or 'sample'."
        )
    return Sample(
        live=int(live.sum()),
        text=text.to(device),
        vision=vision.to(device),
        slots=slots,
        tokens=slots,
        sizes=frames or tuple(sizes.tolist()),
        runs=runs.to(device),
        items=found,
        parted=int(apart.sum()) + 1 > len(found),
        frames=frames,
        starts=bool(owner[0] >= 0),
        ends=bool(owner[-1] >= 0),
        ordinals=(ordinals[vision].to(device), ordinals[every & fixed].to(device)) if fixed.any() else None,
    )
