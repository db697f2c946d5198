"""The record of a context's prefills: what was dropped where."""

import html
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from foveate.contract.settings import Count
from foveate.core.fields import check_call
from foveate.cost import RunCounts
from foveate.engine.ancestry import StageRecord
from foveate.engine.media_tokens import MediaTokens
from foveate.errors import SessionError, SettingError
from foveate.plain.table import Column, Table
from foveate.plain.upstream import warn_caller

if TYPE_CHECKING:
    from PIL import Image

    from foveate.engine.graph_counts import Graphs
    from foveate.viz.showing import Media


@dataclass(eq=False, repr=False)
class PrefillRecord:
    """The record of one prompt's prefill.

    Attributes:
        depth: Decoder layers.
        rows: Prompt tokens of each sample without padding, earlier turns included: (samples,) int64, or a list.
        vision_tokens: Vision tokens of each sample in this call.
        media: The images and videos of each sample.
        fit: Whether the processor passes the "whole" image to the model or a "crop".
        stages: The cuts, in order.
        cached: Whether a KV cache holds the prompt.
        windows: The most tokens that a cache layer holds, for layers with a sliding window in which nothing was
            dropped.
        slots: For cache layers whose tokens were dropped: a function that counts what each sample has.
        reads: For layers in which decode steps read less: how many vision tokens of its cache a step reads, one count
            per sample. Updated by the latest turn and the latest step.
    """

    depth: int
    rows: Sequence[int] | Tensor
    vision_tokens: tuple[int, ...]
    media: Sequence[Sequence[MediaTokens]] = ()
    fit: Literal["whole", "crop"] = "whole"
    stages: list[StageRecord] = field(default_factory=list)
    cached: bool = True
    windows: Mapping[int, int] = field(default_factory=dict)
    slots: Mapping[int, Callable[[], list[int]]] = field(default_factory=dict)
    reads: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _left: tuple[Tensor, Tensor | None, Tensor | None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle with tensors on the host, and slots counted now."""
        slots: dict[int, Any] = {layer: partial(list, count()) for layer, count in self.slots.items()}
        state = {**vars(self), "rows": self._row_counts(), "slots": slots}
        if self._left is not None:
            mask = self.pooling_mask.cpu()
            state |= {"_left": (mask, None, None), "pooling_mask": mask}
        return state

    @cached_property
    def pooling_mask(self) -> Tensor:
        """Which columns of the prompt hold a row at the end, (samples, columns) int64: see `Trace.pooling_mask`."""
        if self._left is None:
            raise SessionError("This prefill did not end, so it is not known which rows are left. Run the model again.")
        mask, columns, valid = self._left  # not padding; and `Rows.read` and `Rows.valid`
        if columns is None:
            return mask
        real = torch.ones_like(columns) if valid is None else valid.long()  # a pad repeats a row's column
        return mask * torch.zeros_like(mask).scatter_add(1, columns.to(mask.device), real.to(mask.device)).clamp(max=1)

    def forget(self) -> None:
        """Forget what was computed from the cuts so far: there are more."""
        for name, value in vars(type(self)).items():
            if isinstance(value, cached_property):
                vars(self).pop(name, None)

    def _row_counts(self) -> list[int]:
        """Return `rows` as a list. The first call reads them from the device."""
        if isinstance(self.rows, Tensor):
            self.rows = self.rows.tolist()
        return list(self.rows)

    @cached_property
    def boxes(self) -> list[list[Tensor | None]]:
        """For each sample and image: the box of the image that each token covers, or None (`PictureLayout.boxes`)."""
        return [[image.boxes() for image in media] for media in self.media]

    @cached_property
    def frames(self) -> list[list[tuple[int, ...]]]:
        """For each sample, and each image or video: vision tokens of each frame; empty if unknown."""
        return [[image.frames for image in media] for media in self.media]

    @property
    def cuts(self) -> list[StageRecord]:
        """The stages that dropped or merged vision tokens."""
        return [stage for stage in self.stages if not stage.rows]

    @property
    def tower_rows(self) -> list[list[tuple[int, ...]]]:
        """For each sample, and each image or video: the rows on which the tower's late blocks ran, for each image, tile
        or frame. Empty if they ran on all, or if patches left the tower for good (PixelPrune on a Qwen-VL)."""
        return [[tuple(len(ran.source) for ran in image.ran) for image in media] for media in self.media]

    @property
    def tower_tokens(self) -> list[list[Tensor]]:
        """For each sample, and each image or video: the tokens whose patches the tower ran on, ascending int64.

        These are all tokens, unless a stage dropped some before the tower.
        """
        kept = [torch.arange(count) for count in self.vision_tokens]
        for stage in self.stages:
            if stage.where == "pixels":
                kept = stage.kept
        tokens = []
        for media, places in zip(self.media or [()] * len(kept), kept, strict=True):
            parts, start = [], 0  # a sample's images are consecutive
            for image in media:
                end = start + image.length
                parts.append(places[(places >= start) & (places < end)] - start)
                start = end
            tokens.append(parts)
        return tokens

    def ran(self, sample: int = 0) -> RunCounts:
        """Return the counts that `foveate.cost` takes: `foveate.cost(config, …, **trace.latest.ran())`."""
        return {
            "tokens": [layer[sample] for layer in self.per_layer],
            "tower_tokens": self.tower_tokens[sample],
            "tower_rows": self.tower_rows[sample],
        }

    @property
    def videos(self) -> list[list[bool]]:
        """For each sample: which of its images are videos."""
        return [[image.video for image in media] for media in self.media]

    @cached_property
    def per_layer(self) -> list[tuple[int, ...]]:
        """Vision tokens that each decoder layer processes, one count per sample."""
        # Each layer has what the last cut before it left. The first layer starts with what the tower left.
        arriving, cuts = self.vision_tokens, {}
        for stage in self.cuts:
            if stage.where == "layer":
                cuts[stage.layer] = stage.after
            elif stage.where != "kv":
                arriving = stage.after
        counts = []
        for layer in range(self.depth):
            arriving = cuts.get(layer, arriving)
            counts.append(arriving)
        return counts

    @property
    def tokens(self) -> list[float]:
        """Mean vision tokens that a decoder layer processes, one value per sample."""
        return [sum(layer[sample] for layer in self.per_layer) / self.depth for sample in range(len(self.rows))]

    @property
    def retention(self) -> list[float]:
        """Mean share of a sample's vision tokens that a decoder layer processed; 1 for a sample without any."""
        return [tokens / count if count else 1.0 for tokens, count in zip(self.tokens, self.vision_tokens, strict=True)]

    @cached_property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens in the KV cache after the prefill: `kv_lengths[layer][sample]`, without padding.

        0 for a layer that caches a state instead of tokens. Empty if the model ran without a cache.
        """
        if not self.cached:
            return []
        lengths: list[list[int]] = []
        rows = self._row_counts()
        for layer in range(self.depth):
            if layer in self.slots:
                lengths.append(self.slots[layer]())
            else:
                lengths.append([min(count, self.windows.get(layer, count)) for count in rows])
        return lengths

    @check_call("A record")
    def kept_by_frame(self, sample: Count = 0) -> list[tuple[int, ...]]:
        """Count the tokens of each frame that a sample has left after each stage. An image counts as one frame.

        Empty if the family does not report which frame a token belongs to.
        """
        if sample >= len(self.vision_tokens):
            raise SettingError(f"There are {len(self.vision_tokens)} samples, from 0 on; got sample={sample}.")
        sizes: list[int] = []
        if sample < len(self.frames):
            sizes = list(itertools.chain(*self.frames[sample]))
        if sum(sizes) != self.vision_tokens[sample]:
            return []
        # The frame of each token: 0 0 1 1 1 for two frames of 2 and 3 tokens.
        owners = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.int64))
        counts = []
        for stage in self.cuts:
            kept = owners[stage.kept[sample]]
            counts.append(tuple(torch.bincount(kept, minlength=len(sizes)).tolist()))
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values. `kept_by_frame` is included only if there is a video."""
        values = {
            "vision_tokens": list(self.vision_tokens),
            "tokens": self.tokens,
            "retention": self.retention,
            "kv_lengths": self.kv_lengths,
            "stages": [stage.to_dict() for stage in self.stages],
        }
        if self.reads:
            values["reads"] = {str(layer): list(counts) for layer, counts in self.reads.items()}
        if any(any(videos) for videos in self.videos):
            values["kept_by_frame"] = [self.kept_by_frame(sample) for sample in range(len(self.rows))]
        return values

    def __repr__(self) -> str:
        return f"PrefillRecord({self._words()})"

    def _repr_html_(self) -> str:
        return self._table().to_html()

    def _words(self) -> str:
        """Format as `retention 33.4%; before layer 3: 576 to 288`."""
        cuts = "; ".join(stage._words() for stage in self.stages)
        read = f"; {self._reading()}" if self.reads else ""
        return f"retention {_shares(self.retention)}; {cuts or 'no cut'}{read}"

    def _reading(self) -> str:
        """Format as `decoding reads 115 vision tokens in layers 3 to 31`."""
        counts = [sum(counts) for counts in self.reads.values()]
        words = " to ".join(map(str, sorted({min(counts), max(counts)})))  # one number if all are equal
        first, last = min(self.reads), max(self.reads)
        return f"decoding reads {words} vision tokens in layers {first} to {last}"

    def _table(self) -> Table:
        """Build a table with a row per stage: vision tokens of all samples before and after, and the share kept."""
        rows = []
        for stage in self.stages:
            before, after = sum(stage.before), sum(stage.after)
            share = f"{after / before:.1%}" if before else ""
            rows.append((stage.place, str(before), str(after), share))
        notes = [f"Retention {_shares(self.retention)}, the mean over {self.depth} decoder layers."]
        if len(self.rows) > 1:
            notes.append(f"Tokens are sums over {len(self.rows)} samples.")
        if not rows:
            notes.append("No cut.")
        if self.reads:
            words = self._reading()
            notes.append(f"{words[0].upper()}{words[1:]}.")
        counts = [Column(head, right=True) for head in ("Before", "After", "Kept")]
        return Table("Vision tokens", ["Stage", *counts], rows, notes)


class Trace:
    """The record of what a context dropped. Its attributes are those of the latest prefill.

    Attributes:
        history: Every prefill of the context, oldest first. For `foveate.apply`, which may run for weeks, and from the
            first prefill with gradients enabled, only the latest 100.
        most: Maximum number of prefills in `history`. None keeps all.
        graphs: How calls ran with CUDA graphs, if these were requested; else None.
    """

    def __init__(self) -> None:
        self.history: list[PrefillRecord] = []
        self.most: int | None = None
        self.graphs: Graphs | None = None

    def add(self, record: PrefillRecord) -> None:
        """Add the record of a prefill that begins."""
        self.history.append(record)
        if self.most is not None:
            del self.history[: -self.most]

    @property
    def latest(self) -> PrefillRecord:
        """The latest prefill.

        Raises:
            SessionError: If the model has not run yet.
        """
        if not self.history:
            raise SessionError("There is nothing to show yet: call the model inside the context first.")
        return self.history[-1]

    @property
    def stages(self) -> list[StageRecord]:
        """The cuts of the latest prefill, in order; empty before the first."""
        return self.latest.stages if self.history else []

    @property
    def cuts(self) -> list[StageRecord]:
        """The stages of the latest prefill that dropped or merged vision tokens."""
        return self.latest.cuts if self.history else []

    @property
    def vision_tokens(self) -> list[int]:
        """Vision tokens of each sample."""
        return list(self.latest.vision_tokens)

    @property
    def tokens(self) -> list[float]:
        """Mean vision tokens that a decoder layer processes, one value per sample."""
        return self.latest.tokens

    @property
    def retention(self) -> list[float]:
        """Mean share of the vision tokens that a decoder layer processes, one value per sample."""
        return self.latest.retention

    @property
    def kv_lengths(self) -> list[list[int]]:
        """Tokens in the KV cache after the prefill: `kv_lengths[layer][sample]`."""
        return self.latest.kv_lengths

    @property
    def pooling_mask(self) -> Tensor:
        """Which columns of the prompt hold a row at the end: multiply your attention mask by it to pool hidden states.

        Never give it to the model. The k-th marked column of a sample's vision tokens has row k of `cuts[-1].origin`,
        also if rows were merged. Cuts of the cache after the prefill do not change it.

        (samples, columns) int64 on the prompt's device: 1 at text and at rows that the last layer processed; 0 at
        padding, at dropped columns, and where an image's last column has a copy of an earlier row.

        Raises:
            SessionError: If the model has not run yet, or did not get to the end.

        Warns:
            UserWarning: If less than half of the budget is left at the end, as the method goes on dropping.
        """
        record = self.latest
        last, mean = sum(record.per_layer[-1]), sum(record.tokens)
        if 2 * last < mean:
            warn_caller(
                f"The last layer has {last} of {sum(record.vision_tokens)} vision tokens, though layers process "
                f'{mean:.0f} on average, so only {last} can be pooled. Methods that drop once, such as "divprune", '
                "leave their whole budget."
            )
        return record.pooling_mask

    @property
    def reads(self) -> dict[int, tuple[int, ...]]:
        """Vision tokens that a decode step reads, by layer, one count per sample; empty if it reads all."""
        return self.latest.reads

    def kept_by_frame(self, sample: int = 0) -> list[tuple[int, ...]]:
        """Count the tokens of each frame that a sample has left after each stage. An image counts as one frame."""
        return self.latest.kept_by_frame(sample)

    def to_dict(self) -> dict[str, Any]:
        """Return the latest prefill as plain values."""
        return self.latest.to_dict()

    def to_json(self) -> str:
        """Return the latest prefill as a JSON object."""
        return json.dumps(self.to_dict())

    @check_call("A drawing")
    def show(self, images: "Media", sample: Count = 0) -> "Image.Image":
        """Draw the kept patches on the image, one panel per stage. Merged patches are tinted, their targets framed.

        A video is drawn as one contact sheet per stage: its frames in a grid with their times, above a histogram of
        the kept tokens per frame.

        Args:
            images: The sample's image, its path, or its video (see `foveate.video.read`); or a list of all of them, in
                order. The frames of a video may also be given as a list of images, if the sample has nothing else, or
                as one array, (frames, height, width, 3) uint8. A video may stand for as many images as it has frames.
            sample: Index of the sample in the batch.

        Returns:
            The drawing. `.save(path)` writes it, a notebook shows it.

        Raises:
            InputError: If the number of images or frames is not the sample's, or the places of its tokens are unknown.
            SessionError: If the model has not run yet.
        """
        from foveate.viz.showing import show

        return show(self.latest, images, sample)

    def __repr__(self) -> str:
        if not self.history:
            return "Trace(nothing ran yet)"
        return f"Trace({self.latest._words()})"

    def _repr_html_(self) -> str:
        """Return a table of the latest prefill, for notebooks."""
        if not self.history:
            return html.escape(repr(self))
        sheet = self.latest._table()
        if len(self.history) > 1:
            notes = (*sheet.notes, f"The latest of {len(self.history)} prefills in `history`.")
            sheet = Table(sheet.title, sheet.columns, sheet.rows, notes)
        return sheet.to_html()


MOST_SHARES = 4  # up to this many samples, shares are listed one by one


def _shares(shares: Sequence[float]) -> str:
    """Format as `33.4%`, one per sample; for many samples their mean and range."""
    if len(shares) <= MOST_SHARES:
        return ", ".join(f"{share:.1%}" for share in shares)
    mean = sum(shares) / len(shares)
    return f"{mean:.1%} ({min(shares):.1%} to {max(shares):.1%} in {len(shares)} samples)"
