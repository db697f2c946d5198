"""Between the layers: one step with images. Stages choose the rows that stay before a layer, and it runs on these."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.engine.cutting import SampleRows, count_images, decide_all, note_attending
from foveate.engine.media_tokens import MediaTokens
from foveate.engine.program import Program, hidden_note
from foveate.engine.prompt_samples import FirstLayer, Sample, read_samples
from foveate.engine.rows import Rows
from foveate.hosts import PictureLayout, at_columns
from foveate_vllm import guards
from foveate_vllm.heads import Heads, HeadsReader, heads_ahead, heads_of
from foveate_vllm.layout import Batch, Images, Layout

__all__ = ["Passing"]

Enter = Callable[[int, Layout], None]
"""Called with the index of a cut and the layout behind it, before the layers there run."""


class Passing:
    """One step with images on its way through the layers. The stream keeps all rows; a layer runs on those that stay.

    Args:
        stages: The stages.
        batch: The step.
        images: Its images.
        lost: Tokens that each request lost at each cut in earlier steps; empty if none.
        norm: The norm before the model's head.
        enter: Gets the layout behind each cut.
        device: The model's device.

    Attributes:
        dropped: Tokens that requests with images lose at each cut, by request.
    """

    def __init__(
        self,
        stages: Program,
        batch: Batch,
        images: Images,
        lost: Sequence[tuple[int, ...]],
        norm: Callable[[Tensor], Tensor],
        enter: Enter,
        device: torch.device,
    ) -> None:
        self._stages = stages
        self._cuts = sorted(stages.cuts)
        self._batch = batch
        self._norm = norm
        self._enter = enter
        self._lost = lost
        self._requests, samples = _samples_of(batch, images)
        self._table = Rows.entering(samples, batch.rows, device, packed=True)
        self._layout = Layout(batch, [0] * len(batch), None, batch.counts, device)
        self._left = batch.counts
        self.dropped: dict[int, tuple[int, ...]] = dict.fromkeys(self._requests, ())

    # -- a layer -----------------------------------------------------------------------------------------------

    def run(
        self,
        index: int,
        layer: Any,
        original: Callable[..., Any],
        positions: Tensor,
        hidden: Tensor,
        residual: Tensor | None,
        **others: Any,
    ) -> tuple[Tensor, Tensor]:
        """Run a decoder layer of vLLM on the rows that stay.

        Args:
            index: The layer's index.
            layer: The layer.
            original: Its own forward.
            positions: (rows,), or (3, rows) with M-RoPE, of all rows of the step.
            hidden: (rows, width), the output of the previous layer, not yet added to the stream.
            residual: (rows, width), the rest of the stream; None before layer 0.
            others: Other arguments of the layer.
        """
        stream = _Stream(hidden, residual)
        if index in self._cuts or self._stages.before(index):
            self._decide(index, layer, positions, stream)
        self._remember(index, stream)
        rows = self._layout.rows
        parts = at_columns(positions, rows, -1), at_columns(hidden, rows), at_columns(residual, rows)
        with self._reading(index, layer):
            added, rest = original(*parts, **others)
        if rows is None:
            return added, rest
        below = hidden if residual is None else residual
        # Rows that ran get their new values; dropped rows keep the last ones.
        return hidden.index_copy(0, rows, added), below.index_copy(0, rows, rest)

    def _decide(self, index: int, layer: Any, positions: Tensor, stream: "_Stream") -> None:
        """Run the stages before a layer."""
        rows = stream.rows
        ahead: list[Heads] = []

        def heads() -> Heads:
            """Compute queries and keys once, for all rows that arrive."""
            if not ahead:
                at = self._layout.rows
                ahead.append(heads_ahead(layer, at_columns(positions, at, -1), at_columns(rows, at)))
            return ahead[0]

        decided, table = [], self._table
        for member in table.members:
            reader_of = partial(self._reader, heads=heads, width=rows.shape[-1], layer=index)
            arriving = SampleRows(index, table, member, rows, reader_of, self._norm)
            decided.append((member, decide_all(arriving, self._stages)))
        if any(decision.cut.rows is not None for _, decision in decided):
            guards.refuse_merging(index)
        self._table, _ = table.keep(dict(count_images(decided)))
        if index in self._cuts:
            self._lay_out(self._cuts.index(index))

    def _remember(self, index: int, stream: "_Stream") -> None:
        """Store what later stages read of the rows that enter this layer."""
        table = self._table
        for member in table.members:
            if index == 0:
                table.first_layer[member] = FirstLayer(table.counts[member], table.sizes[member], self._stages.openers)
            if index in self._stages.remembered:
                table.put_note(member, hidden_note(index), stream.rows[table.columns[member]])

    # -- rows --------------------------------------------------------------------------------------------------

    def _lay_out(self, cut: int) -> None:
        """Compute the rows that the layers behind a cut process."""
        counts, table = list(self._batch.counts), self._table
        for request, entered, count in zip(self._requests, table.entered, table.counts, strict=True):
            counts[request] -= len(entered) - count
        dropped = [behind[cut] if behind else 0 for behind in self._lost]
        for request in self._requests:
            dropped[request] = self._batch.counts[request] - counts[request]
            self.dropped[request] = (*self.dropped[request], dropped[request])
        rows = table.read[0] if table.dropped else None
        self._left = tuple(counts)
        self._layout = Layout(self._batch, dropped, rows, counts, table.device)
        self._enter(cut, self._layout)

    def _span(self, request: int) -> slice:
        """Return the range of a request's rows among those that stay."""
        start = sum(self._left[:request])
        return slice(start, start + self._left[request])

    # -- reading -----------------------------------------------------------------------------------------------

    def _reader(self, member: int, heads: Callable[[], Heads], width: int, layer: int) -> HeadsReader:
        """Return the reader of a layer's queries and keys for a request."""
        rows, span = self._layout.rows, self._span(self._requests[member])
        if rows is None:
            rows = torch.arange(self._batch.rows, device=self._table.device)
        return HeadsReader(self._table, member, rows[span], width, layer, partial(_part, heads, span))

    @contextmanager
    def _reading(self, index: int, layer: Any) -> Iterator[None]:
        """Compute signals from a layer's queries and keys while it runs, for stages before the next."""
        signals = self._stages.signals_while(index)
        context = heads_of(layer, partial(self._note, index)) if signals else nullcontext()
        with context:
            yield

    def _note(self, index: int, heads: Heads) -> None:
        width = heads.query.shape[1] * heads.query.shape[2]
        for member in self._table.members:
            note_attending(self._reader(member, lambda: heads, width, index), self._stages.signals_while(index))


class _Stream:
    """The residual stream, which vLLM's layers pass on in two parts.

    Args:
        hidden: (rows, width), the latest layer's output.
        residual: (rows, width), the rest; None before layer 0.
    """

    def __init__(self, hidden: Tensor, residual: Tensor | None) -> None:
        self._hidden = hidden
        self._residual = residual
        self._sum: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """(rows, width): the sum, computed on first use."""
        if self._sum is None:
            self._sum = self._hidden if self._residual is None else self._hidden + self._residual
        return self._sum


def _part(heads: Callable[[], Heads], span: slice) -> Heads:
    """Return the queries and keys of one request's rows."""
    whole = heads()
    return Heads(whole.query[span], whole.key[span], whole.scaling)


def _samples_of(batch: Batch, images: Images) -> tuple[list[int], list[Sample]]:
    """Return the requests with images, and each as a sample whose columns are rows of the step."""
    sizes = images.of_requests(batch)
    requests = list(sizes)
    live = torch.zeros(len(requests), batch.rows, dtype=torch.bool)
    for row, request in zip(live, requests, strict=True):
        row[batch.starts[request] : batch.starts[request + 1]] = True
    media = [MediaTokens(size, PictureLayout) for request in requests for size in sizes[request]]
    samples = read_samples([(live & images.places[: batch.rows], media)], live)
    if images.whole is not None:
        samples = [_with_whole(sample, images.whole) for sample in samples]
    return requests, samples


def _with_whole(sample: Sample, size: int) -> Sample:
    """Return a sample whose images had `size` tokens before they entered the decoder."""
    media = []
    for image in sample.media:
        kept = Cut.take(torch.arange(image.length), size)
        media.append(replace(image, length=size, cut=kept))
    return replace(sample, media=media)
