"""The state of one forward of the model, from its arguments to its last layer: all that the engine remembers of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.tensors import Memo, send
from foveate.engine import guards
from foveate.engine.bucket import Bucket, buckets_of
from foveate.engine.cache import PrunedLayer
from foveate.engine.program import Program
from foveate.engine.rows import RowMap
from foveate.engine.samples import Sample
from foveate.engine.trace import PrefillRecord

__all__ = ["Forward", "LayerCall", "Original"]

Original = Callable[..., Any]
"""The function of the model that a hook stands around."""

NOTHING = torch.zeros(0, 0, dtype=torch.bool)


@dataclass(eq=False)
class Forward:
    """One forward: a prefill, a later turn or a decode step.

    Attributes, on the way to the decoder (encode, begin):
        last_only: Whether only the last column's logits are asked for, as `generate` does.
        arguments: Of the core's forward, by name; let go of where the decoder begins.
        ids: The prompt's ids, (samples, columns); None where it came as embeddings.
        encoded: What the `get_*_features` calls answered, by modality.
        image_lengths: Vision tokens of each image of each sample, where only the prompt tells.
        placeholders: Where the vision tokens are, (samples, columns) bool, by modality.

    Attributes, in the decoder (each layer):
        backend: Name of the attention implementation.
        idle: Whether every layer runs untouched: nothing will be dropped, and nothing is missing in its cache.
        drops: Whether tokens may be dropped in this forward.
        live: (samples, unpruned columns), nonzero where a column is no padding; None if all are, or tokens cannot be
            dropped.
        position_ids: (samples or 1, columns); None until the model has made them, and where no stage renumbers rows.
        memo: Masks, tables and copies that several layers share.
        record: What the trace keeps; None for a decode step.

    Attributes, the rows that are left (where `drops`):
        span: Columns of the forward.
        samples: The batch.
        buckets: The samples with vision tokens, and what is left of these.
        rows: The rows that the coming layer processes; None while nothing was dropped.
        row_maps: The rows that each layer processed, as far as the forward has come.
        additions: What the decoder adds to vision tokens behind its first layers (see `Family.added_later`).
        image_ends: Samples and columns of the last token of every run of vision tokens, (runs,) int64, on the host;
            None where only the last column will be read.
        text: (samples, columns) bool, columns of text.
        first: (samples,) int64, each sample's first column that is no padding.
    """

    last_only: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    encoded: dict[str, Any] = field(default_factory=dict)
    image_lengths: list[list[int]] | None = None
    placeholders: list[tuple[str, Tensor]] = field(default_factory=list)

    begun: bool = False
    backend: str = "sdpa"
    idle: bool = False
    drops: bool = False
    live: Tensor | None = None
    position_ids: Tensor | None = None
    memo: Memo = field(default_factory=Memo)
    record: PrefillRecord | None = None

    span: int = 0
    samples: list[Sample] = field(default_factory=list)
    buckets: list[Bucket] = field(default_factory=list)
    rows: RowMap | None = None
    row_maps: list[RowMap | None] = field(default_factory=list)
    additions: list[Tensor] | None = None
    image_ends: tuple[Tensor, Tensor] | None = None
    text: Tensor = NOTHING
    first: Tensor = NOTHING
    _entered: Tensor = NOTHING

    def let_go_of_arguments(self) -> None:
        """Forget what is not needed in the decoder, pixels among it."""
        self.arguments, self.encoded, self.placeholders = {}, {}, []
        self.ids = self.image_lengths = None

    def drop_in(self, samples: list[Sample], program: Program, embeds: Tensor) -> None:
        """Begin a forward in which tokens will be dropped, of embeddings (samples, columns, width)."""
        self.drops = True
        self.samples = samples
        self.span = embeds.shape[1]
        self.buckets = buckets_of(samples, program.together, embeds.device)
        if not self.last_only:
            self.image_ends = _ends_of_runs(samples)
        text = torch.zeros(len(samples), self.span, dtype=torch.bool)
        for row, sample in zip(text, samples, strict=True):
            row[sample.text] = True
        entered = text.clone()
        for row, sample in zip(entered, samples, strict=True):
            row[sample.vision] = True
        # argmax finds the first of equal values: padding, padding, text, image gives column 2.
        self.first = send(entered.to(torch.uint8).argmax(dim=1), embeds.device)
        self.text = send(text, embeds.device)
        self._entered = entered

    @property
    def entering_rows(self) -> tuple[int, ...]:
        """Rows of each sample before anything is dropped."""
        return tuple(sample.rows for sample in self.samples)

    @property
    def ends_in_vision(self) -> bool:
        """Whether any sample ends in a vision token."""
        return any(sample.ends for sample in self.samples)

    @property
    def dropped(self) -> bool:
        """Whether any sample has fewer rows now than it had vision tokens."""
        return any(bucket.left < bucket.entered for bucket in self.buckets)

    @property
    def present(self) -> RowMap:
        """The rows that are left, also while nothing was dropped."""
        if self.rows is not None:
            return self.rows
        return self.memo.once(lambda: RowMap(send(self._entered, self.text.device), self.entering_rows), "present")

    def vision_left(self) -> tuple[int, ...]:
        """Vision tokens left of each sample, those that always stay among them."""
        return self._with_left([sample.fixed for sample in self.samples])

    def _with_left(self, others: list[int]) -> tuple[int, ...]:
        """Rows of each sample: so many others, and those that are left of its vision tokens."""
        counts = list(others)
        for bucket in self.buckets:
            for member in bucket.members:
                counts[member] += bucket.left
        return tuple(counts)

    def lay_out(self) -> RowMap:
        """The rows that are left now."""
        lengths = self._with_left([len(sample.text) for sample in self.samples])
        guards.refuse_empty_prompt(lengths)
        device = self.buckets[0].index.device
        left = self.text.to(device)  # (samples, columns): text first, then each bucket's rows
        source: Tensor | None = None
        if any(bucket.parent is not None for bucket in self.buckets):
            source = torch.arange(self.span, device=device).expand_as(left)
        for bucket in self.buckets:
            columns = bucket.columns
            left = left.index_put((bucket.owners, columns), left.new_ones(()))
            if source is not None:
                source = source.index_put((bucket.owners, columns), bucket.positions_of())
        return RowMap(left, lengths, source)

    def final(self) -> Tensor:
        """Which columns the tokens that are left stand for: (samples, columns) bool; all text does."""
        # 1 at text and 0 at vision tokens, then the number of rows that stand for the column.
        final = torch.ones_like(self.text, dtype=torch.int32)
        for bucket in self.buckets:
            owners = bucket.owners.to(final.device)
            final = final.index_put((owners, bucket.vision.to(final.device)), final.new_zeros(()))
            source = bucket.source.to(final.device)
            columns = bucket.vision.to(final.device).gather(1, source.clamp(min=0))
            # A row that stands for no token is read as token 0 here, so it adds a 0 there: adding, not writing.
            final = final.index_put((owners, columns), (source >= 0).to(final.dtype), accumulate=True)
        return final > 0


@dataclass(slots=True, eq=False)
class LayerCall:
    """One decoder layer's call, as the model makes it.

    Attributes:
        index: Which layer.
        module: The layer.
        entered: Its full-length input, (samples, columns, width).
        hidden: The same with merged rows in it, once the stages before the layer have cut.
        others: Positional arguments behind it.
        kwargs: Arguments by name; masks, tables and ids are replaced on the way.
        by_name: Whether the input came by name too.
        stored: The layer's cache, where tokens of it were dropped.
    """

    index: int
    module: nn.Module
    entered: Tensor
    hidden: Tensor
    others: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool
    stored: PrunedLayer | None

    @property
    def cache(self) -> Any:
        """The model's cache; None if it runs without one."""
        return self.kwargs.get("past_key_values")

    @property
    def past(self) -> int:
        """Unpruned columns before this call, as far as its cache has lost tokens; else 0."""
        return 0 if self.stored is None else self.stored.seen

    def run(self, original: Original, hidden: Tensor) -> Any:
        """Call the layer itself on these rows."""
        if self.by_name:
            arguments = {**self.kwargs, "hidden_states": hidden}
            return original(**arguments)
        return original(hidden, *self.others, **self.kwargs)


def _ends_of_runs(samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Samples and columns, (runs,) int64 each, of the last vision token of every run."""
    owners = np.repeat(np.arange(len(samples)), [len(sample.vision) for sample in samples])
    runs = np.concatenate([sample.runs.numpy() for sample in samples])
    columns = np.concatenate([sample.vision.numpy() for sample in samples])
    # A run ends where the next token is of another sample or run: of runs 0 0 1 at the second and third token.
    last = np.ones(len(owners), bool)
    last[:-1] = (np.diff(owners) != 0) | (np.diff(runs) != 0)
    return torch.from_numpy(owners[last]), torch.from_numpy(columns[last])
