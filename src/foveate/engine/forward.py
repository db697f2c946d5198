"""Each layer: the state of one forward of the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from foveate._transformers import attention_of
from foveate.core.tensors import Change, Memo, send
from foveate.engine import guards
from foveate.engine.ancestry import Where
from foveate.engine.cache import PrunedLayer
from foveate.engine.hooks import Extensions
from foveate.engine.program import Program
from foveate.engine.prompt_samples import Sample
from foveate.engine.rows import Merge, Rows, Step
from foveate.engine.streams import Streams
from foveate.errors import UnsupportedError
from foveate.families.base import Family

UNSET = torch.zeros(0, 0, dtype=torch.bool)
NO_EXTENSIONS = Extensions()


@dataclass(eq=False)
class Arrival:
    """A forward on its way to the decoder, with pixels and encoder outputs; released before the layers run.

    Attributes:
        last_only: Whether only the last column's logits are requested, as `generate` does.
        arguments: Arguments of the core's forward, by name.
        ids: The prompt's ids, (samples, columns); None if it was given as embeddings.
        encoded: Outputs of the `get_*_features` calls, by modality.
        image_lengths: Vision tokens of each image of each sample, by modality, if only the prompt tells them.
        placeholders: Where the vision tokens are, (samples, columns) bool, by modality.
        splits: Whether chunked prefill will cut an image in two, or off the question that the method reads.
        goes_on: Whether this is a chunk of a prompt other than the first.
        behind_image: Whether the previous forward on this cache ended in an image or right behind it.
        behind_cut: Whether tokens had been dropped there.
        position_ids: (samples or 1, columns); None until the model has made them, and if no stage renumbers rows.
        unseen: What may have put pictures into the prompt past `get_*_features`, in words; empty: nothing did.
        generate_ids: The ids that `generate` feeds, (samples, columns). The model may still get embeddings.
        targets: What the model's loss predicts at each column, (samples, columns) int64, −100 for nothing; or None.
    """

    last_only: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    encoded: dict[str, Any] = field(default_factory=dict)
    image_lengths: dict[str, list[list[int]] | None] = field(default_factory=dict)
    placeholders: list[tuple[str, Tensor]] = field(default_factory=list)
    splits: bool = False
    goes_on: bool = False
    behind_image: bool = False
    behind_cut: bool = False
    position_ids: Tensor | None = None
    unseen: str = ""
    generate_ids: Tensor | None = None
    targets: Tensor | None = None


class CutNote(NamedTuple):
    """One cut of a batch.

    Attributes:
        where, layer: See `StageRecord`.
        before, after: Vision tokens of each sample.
        steps, columns: See `Rows`, behind the cut.
    """

    where: Where
    layer: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    steps: tuple[tuple[Step, ...], ...]
    columns: tuple[Tensor, ...]

    def map(self, change: Change) -> "CutNote":
        """Return the note with `change` applied to its tensors."""
        steps = tuple([tuple([step.map(change) for step in own]) for own in self.steps])
        return self._replace(steps=steps, columns=tuple(map(change, self.columns)))


@dataclass(eq=False)
class Outcome:
    """The result of a forward, layer by layer. After the last layer nothing else is read.

    Attributes:
        table: The rows that are left, also while nothing was dropped; None if nothing may be.
        ran: The rows that each layer so far processed; None: all columns.
        cuts: The cuts so far.
    """

    table: Rows | None = None
    ran: list[Rows | None] = field(default_factory=list)
    cuts: list[CutNote] = field(default_factory=list)

    @property
    def rows(self) -> Rows | None:
        """The rows that the next layer processes; None while nothing is dropped."""
        return self.table if self.table is not None and self.table.dropped else None

    def on(self, device: torch.device) -> Rows:
        """Return the table, which moves to a device with the layers."""
        assert self.table is not None
        self.table = self.table.on(device)
        return self.table


@dataclass(eq=False)
class Forward:
    """One forward in the decoder: a prefill, a later turn or a decode step.

    Attributes:
        program: The method's stages.
        family: The model's family.
        outcome: The result so far.
        position_ids: See `Arrival`.
        drops: Whether tokens may be dropped in this forward.
        live: (samples, unpruned columns), nonzero where a column is not padding; None if there is no padding.
        memo: Masks, tables and copies that several layers share.
        cache: The cache that the first layer got; None if the model runs without one.
        caches: Whether the model was told to cache.
        plans: Vision tokens that each layer will process, per sample; None if unknown beforehand.
        extensions: What else is done in it.
        is_prompt: Whether it is a prompt, or a chunk of one (`goes_on`: not the first), and no decode step.
        is_prefill: Whether it is a prompt with pictures, or the first one of a cache.
        uses_cache: Whether the model was not told to do without.
        reads: For layers in which decode steps read less: see `PrefillRecord`.
        passes_rows: Whether layers pass rows on to one another.
        passed_on: What the layer before passed on in place of the full-length stream; None: it passed the stream.
        unpadded: (samples, span) int64, 1 where a column of a prompt is not padding; on the prompt's device.

    Attributes for the rows that are left (if `drops`):
        span, count: Columns of the forward, and samples.
        samples: The batch.
        additions: What the decoder adds to vision tokens after its first layers (see `Family.later_additions`).
        image_ends: Sample and column of the last token of every run of vision tokens, (2, runs) int64; None if only
            the last column will be read.
        first: (samples,) int64, each sample's first column that is not padding.
        entering_rows: (samples,) int64, rows of each sample before anything is dropped.
        entered: (samples, columns) bool, columns of the entering rows; on the host.
    """

    program: Program
    family: Family
    outcome: Outcome = field(default_factory=Outcome)
    position_ids: Tensor | None = None
    drops: bool = False
    live: Tensor | None = None
    memo: Memo = field(default_factory=Memo)
    cache: Any = None
    caches: bool = False
    plans: Sequence[Sequence[int] | None] = ()
    extensions: Extensions = NO_EXTENSIONS
    is_prompt: bool = False
    goes_on: bool = False
    is_prefill: bool = False
    uses_cache: bool = True
    reads: dict[int, tuple[int, ...]] = field(default_factory=dict)
    passes_rows: bool = False
    passed_on: "PassedOn | None" = None
    unpadded: Tensor | None = None

    span: int = 0
    count: int = 0
    samples: list[Sample] = field(default_factory=list)
    additions: list[Tensor] | None = None
    image_ends: Tensor | None = None
    first: Tensor = UNSET
    entering_rows: Tensor = UNSET
    entered: Tensor = UNSET

    @property
    def backend(self) -> str:
        """Name of the attention implementation."""
        return str(self.family.text.config._attn_implementation)

    def drop_in(self, embeds: Tensor, last_only: bool) -> None:
        """Start a forward that drops tokens, on embeddings (samples, columns, width); see `Arrival`."""
        samples = self.samples
        self.outcome.table = Rows.entering(samples, self.span, embeds.device)
        if not last_only:
            # A run ends where the next token belongs to another: runs 0 0 1 end at the second and third token.
            ends = [sample.vision.numpy()[np.diff(sample.runs.numpy(), append=-1) != 0] for sample in samples]
            owners = np.repeat(np.arange(len(samples)), [len(columns) for columns in ends])
            self.image_ends = send(torch.from_numpy(np.stack((owners, np.concatenate(ends)))), embeds.device)
        entered = np.zeros((len(samples), self.span), bool)
        for row, sample in enumerate(samples):
            entered[row, sample.text.numpy()] = entered[row, sample.vision.numpy()] = True
        # argmax returns the first True: padding, padding, text, image gives column 2.
        numbers = np.stack((entered.argmax(axis=1), entered.sum(axis=1)))
        self.first, self.entering_rows = send(torch.from_numpy(numbers), embeds.device)
        self.entered = torch.from_numpy(entered)

    @property
    def ends_in_vision(self) -> bool:
        """Whether any sample ends in a vision token."""
        return any(sample.ends for sample in self.samples)

    @property
    def table(self) -> Rows:
        """The rows that are left, also while nothing was dropped."""
        assert self.outcome.table is not None
        return self.outcome.table

    def vision_left(self) -> tuple[int, ...]:
        """Return the vision tokens left of each sample, including those that always stay."""
        return tuple([sample.fixed + count for sample, count in zip(self.samples, self.table.counts, strict=True)])

    def move_additions(self, merge: Merge, layer: int) -> None:
        """Move the later additions of merged rows along with their tokens to the rows' new places."""
        if self.additions is None:
            return
        if not isinstance(self.additions, list):
            raise UnsupportedError(
                "This model adds features of its pictures before several layers. foveate cannot add these to rows "
                "that are merged or that have text between them. Use a method that drops between layers and does not "
                "merge."
            )
        # Additions are (vision tokens of all samples, width): each sample's tokens are offset by its start.
        start = sum([len(sample.vision) for sample in self.samples[: merge.member]])
        places = [self.table.slots(merge.member, columns) + start for columns in (merge.stored, merge.came_from)]
        for depth in range(layer, len(self.additions)):
            added = self.additions[depth]
            target, origin = (slots.to(added.device) for slots in places)
            self.additions[depth] = added.index_put((target,), added[origin])

    def note_cut(self, where: Where, layer: int | None, before: tuple[int, ...]) -> None:
        """Note a cut that a method asked for. `before` are the vision tokens of each sample before it."""
        table = self.table
        self.outcome.cuts.append(CutNote(where, layer, before, self.vision_left(), table.steps, table.columns))

    def tell_cut(self, where: Where, layer: int | None, before: Rows | None) -> None:
        """Tell extensions that rows were cut: see `Extension.after_cut`."""
        for after_cut in self.extensions.after_cut:
            after_cut(self, where, layer, before)


class PassedOn(NamedTuple):
    """Rows that a layer passed on to the next one as they are.

    Attributes:
        rows: Which rows they are.
        output: The rows, (samples, rows, width): the very tensor that the layer returned.
        full: The full-length stream into which they are written when somebody reads it.
    """

    rows: Rows
    output: Tensor
    full: Tensor


@dataclass(slots=True, eq=False)
class LayerCall:
    """One decoder layer's call, as the model makes it. What the model passes is never changed.

    Attributes:
        index: The layer's index.
        module: The layer.
        input: What the model passes first: the full-length stream, (samples, columns, width), or `passed_on.output`.
        kwargs: Other arguments by name.
        stored: The layer's cache, if tokens of it were dropped.
        cache: The model's cache; None if it runs without one.
        kind: The first layer that gets the same arguments, if it is called alike.
        samples, span: Samples and columns of the call.
        passed_on: See `Forward`; None from when somebody reads the full-length stream.
        streams: How to fold several streams of hidden states into one; None if there is one.
    """

    index: int
    module: nn.Module
    input: Tensor
    kwargs: dict[str, Any]
    stored: PrunedLayer | None
    cache: Any
    kind: int
    samples: int
    span: int
    passed_on: PassedOn | None = None
    streams: Streams | None = None
    _merged: Tensor | None = None

    @property
    def entered(self) -> Tensor:
        """The full-length stream that enters the layer, (samples, columns, width): passed-on rows are written back."""
        if self.passed_on is not None:
            rows, output, full = self.passed_on
            self.input, self.passed_on = rows.scatter(full, output), None
        return self.input

    @property
    def hidden(self) -> Tensor:
        """`entered`, with the rows written into it that stages before the layer merged."""
        return self.entered if self._merged is None else self._merged

    @hidden.setter
    def hidden(self, hidden: Tensor) -> None:
        self._merged = hidden

    def rows(self, rows: Rows) -> Tensor:
        """Return the rows on which the layer runs, (samples, rows, width). A stream with merged rows is freed."""
        if self.is_passed_on(rows):
            return self.input
        hidden, self._merged = self.hidden, None
        return rows.gather(hidden)

    def full(self, rows: Rows) -> Tensor:
        """Return the full-length stream into which the layer's output for these rows is written."""
        if self.passed_on is not None and self.is_passed_on(rows):
            return self.passed_on.full
        return self.entered

    def is_passed_on(self, rows: Rows) -> bool:
        """Return whether the layer before passed on these very rows, and nobody has read the full-length stream."""
        return self.passed_on is not None and self.passed_on.rows is rows

    @property
    def device(self) -> torch.device:
        """Where the layer runs."""
        return self.input.device

    @property
    def is_causal(self) -> bool:
        """Whether the layer's kernel, given no mask, lets a row see only itself and rows before it."""
        return bool(getattr(attention_of(self.module), "is_causal", True))

    @property
    def past(self) -> int:
        """Unpruned columns before this call if tokens of its cache were dropped; else 0."""
        if self.stored is None:
            return 0
        return self.stored.seen

    @property
    def shift(self) -> Tensor | None:
        """By how much positions have shrunk on the layer's cache; None: not at all."""
        return self.stored and self.stored.shift

    @property
    def more(self) -> dict[str, Any]:
        """Arguments that ordinary layers do not get, by name."""
        return {name: value for name, value in self.kwargs.items() if name not in guards.LAYER_ARGUMENTS}
