"""One call of the decoder with vision tokens in it: who is left, layer by layer."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from foveate.core.host import send
from foveate.engine.answers import check, counted, tower_cut
from foveate.engine.bucket import Bucket, Mine, buckets_of, each
from foveate.engine.forms import EngineCut, EngineView, Heads, Queries
from foveate.engine.program import Program
from foveate.engine.rows import RowMap
from foveate.engine.samples import Sample
from foveate.engine.trace import PrefillRecord, Stage
from foveate.errors import UnsupportedError

__all__ = ["Attend", "Prefill"]


class Attend(Protocol):
    """Computes attention rows of the layer that some samples are about to enter."""

    def rows(self, queries: Queries, start: int, stop: int, both_ways: bool, heads: Heads) -> Iterator[Tensor]: ...

    def keys(self) -> Tensor: ...


class Prefill:
    """The state of one call with vision tokens: made before the first layer, cut between layers.

    Attributes:
        span: Columns of the call.
        samples: The batch.
        groups: The samples with vision tokens, and what is left of them.
        layout: The rows the coming layer processes; None while nobody has left.
        layouts: The rows each layer processed, as far as the call has come.
        record: What the trace keeps.
        rows: Rows of each sample before anybody leaves.
        first: (samples,) int64, the first of them.
        ends: Whether any sample ends in a vision token.
        image_ends: Samples and columns of the last token of every run of vision tokens, (runs,) int64, on the host;
            None where only the last column will be read.
    """

    def __init__(
        self,
        program: Program,
        samples: list[Sample],
        span: int,
        record: PrefillRecord,
        device: torch.device,
        added: list[Tensor] | None = None,
        last_only: bool = False,
    ) -> None:
        self.program = program
        self.samples = samples
        self.groups = buckets_of(samples, program.together, device)
        self.span = span
        self.layout: RowMap | None = None
        self.layouts: list[RowMap | None] = []
        self.record = record
        self.ends = any(sample.ends for sample in samples)
        self.image_ends = None if last_only else _ends_of_runs(samples)
        self.rows = tuple(sample.rows for sample in samples)
        text = torch.zeros(len(samples), span, dtype=torch.bool)
        for row, sample in zip(text, samples, strict=True):
            row[sample.text] = True
        whole = text.clone()
        for row, sample in zip(whole, samples, strict=True):
            row[sample.vision] = True
        self.first = send(whole.to(torch.uint8).argmax(dim=1), device)
        self._text, self._all = send(text, device), whole
        self._whole: RowMap | None = None
        self._added = added
        self._cuts = frozenset(program.cuts())

    @property
    def dropped(self) -> bool:
        """Whether any sample has fewer rows now than it had vision tokens."""
        return any(group.left < group.vision.shape[1] for group in self.groups)

    @property
    def present(self) -> RowMap:
        """The rows that are left, also while nobody has left."""
        if self.layout is not None:
            return self.layout
        if self._whole is None:
            self._whole = RowMap(send(self._all, self._text.device), self.rows)
        return self._whole

    def start(self, hidden: Tensor) -> Tensor:
        """Take what the tower has decided as a cut before layer 0.

        Args:
            hidden: The decoder's input, (samples, columns, width); an image's rows are in the first of its columns.

        Returns:
            The input, each row in the run of columns of the token that it stands for.
        """
        if self.program.encodes is None:
            return hidden
        cuts = [tower_cut(group.known, hidden.device) for group in self.groups]
        if not any(item.leaves for sample in self.samples for item in sample.items):
            for group, cut in zip(self.groups, cuts, strict=True):
                group.notes = dict(cut.notes)
            return hidden
        before = self._counts()
        for group, cut in zip(self.groups, cuts, strict=True):
            rows, _ = group.take(cut)
            if group.runs is not None:
                assert rows is not None
                to, came_from = group.columns, group.vision.gather(1, rows)
                hidden = hidden.index_put((group.owners, to), hidden[group.owners, came_from])
                self._move_added(group, 0, rows)
        self._record("projector" if self.program.encodes == "projector" else "tower", None, before)
        self.layout = self._lay_out(None)
        return hidden

    def enter(self, layer: int, hidden: Tensor, attend: Callable[[Tensor, Bucket], Attend]) -> Tensor:
        """EngineCut and observe before `layer`.

        Args:
            layer: The coming layer.
            hidden: Its full-length input, (samples, columns, width).
            attend: Gives attention rows of this layer, from its input and for a group.

        Returns:
            The input, with merged rows written into it.
        """
        if layer in self._cuts:
            hidden = self._cut(layer, hidden, attend)
            if self.program.remembers(layer):
                self._show(self.program.remember, layer, hidden, attend)
        elif self.program.looks(layer):
            self._show(self.program.look, layer, hidden, attend)
        self.layouts.append(self.layout)
        return hidden

    def listens(self, layer: int) -> bool:
        """Whether a stage waits for the attention of this layer."""
        return self.program.listens(layer)

    def listen(self, layer: int, hidden: Tensor, attend: Callable[[Tensor, Bucket], Attend]) -> None:
        """Let the stages see what `layer` attends with; arguments as in `enter`."""
        self._show(self.program.listen, layer, hidden, attend)

    def _show(
        self,
        look: Callable[[EngineView], EngineCut | None],
        layer: int,
        hidden: Tensor,
        attend: Callable[[Tensor, Bucket], Attend],
    ) -> None:
        """Let somebody look at the rows of every group, and take notes."""
        for group in self.groups:
            if group.left:
                self._ask(group, layer, hidden, attend, look)

    def _ask(
        self,
        group: Bucket,
        layer: int,
        hidden: Tensor,
        attend: Callable[[Tensor, Bucket], Attend],
        question: Callable[[EngineView], EngineCut | None],
    ) -> EngineCut | None:
        """What the method answers, with the samples in front of all tensors; its notes are kept."""
        group.to(hidden.device)
        columns, made, answers = group.columns, list[Attend](), list[EngineCut | None]()

        def rows_of() -> Attend:
            if not made:
                made.append(attend(hidden, group))
            return made[0]

        def one(given: dict[str, Any], mine: Mine) -> dict[str, Any]:
            def rows(queries: Queries, start: int, stop: int, both: bool, heads: Heads) -> Iterator[Tensor]:
                return (mine(block) for block in rows_of().rows(queries, start, stop, both, heads))

            sample, places = given["sample"], given["columns"]
            view = EngineView(
                layer=layer,
                sample_tokens=given["tokens"],
                read=lambda: hidden[sample.expand(len(places)), places],
                entered=group.vision.shape[1],
                sizes=group.sizes,
                entered_sizes=group.first.entered_sizes,
                started_sizes=group.first.started_sizes,
                text_after=tuple(after > 0 for after in group.first.text_after),
                notes=given["notes"],
                attend=rows,
                keys_of=lambda: mine(rows_of().keys()),
                several_frames=group.first.frames is not None and len(group.first.frames) > len(group.first.items),
            )
            cut = question(view)
            answers.append(cut)
            told = {"notes": view.notes}
            if cut is None:
                return told
            check(cut, len(view), self.program.method)
            parts = {"kept": cut.kept, "rows": cut.rows, "assign": cut.assign}
            found = {name: part.to(places.device) for name, part in parts.items() if part is not None}
            return told | {"cut": found, "cut notes": dict(cut.notes)}

        asked = {"sample": group.samples, "columns": columns, "tokens": group.tokens, "notes": group.notes}
        found = each(one, asked)
        group.notes = found["notes"]
        return (
            None if answers[0] is None else EngineCut(sizes=answers[0].sizes, notes=found["cut notes"], **found["cut"])
        )

    def _cut(self, layer: int, hidden: Tensor, attend: Callable[[Tensor, Bucket], Attend]) -> Tensor:
        before = self._counts()
        asked = [
            (group, self._ask(group, layer, hidden, attend, self.program.cut) if group.left else None)
            for group in self.groups
        ]
        answers = counted(asked)
        self.groups = [group for group, _ in answers]
        left, merged = False, []
        for group, cut in answers:
            if cut is None or (cut.rows is None and cut.kept.shape[1] == group.left):
                continue
            left = True
            rows, came_from = group.take(cut)
            if rows is not None:
                columns = group.columns
                merged.append((group.owners.expand_as(columns).flatten(), columns.flatten(), rows.flatten(0, 1)))
                self._move_added(group, layer, came_from)
        if merged:
            owners, columns, rows = (torch.cat(parts) for parts in zip(*merged, strict=True))
            hidden = hidden.index_put((owners, columns), rows.to(hidden.dtype))
        if left:
            self.layout = self._lay_out(layer)
        self._record("layer", layer, before)
        return hidden

    def _move_added(self, group: Bucket, layer: int, came_from: Tensor) -> None:
        """Let the later additions of merged rows go with the tokens they stand for, to the places they are in now."""
        if self._added is None or layer >= len(self._added):
            return
        ends = [0, *itertools.accumulate(len(sample.vision) for sample in self.samples)]
        starts = torch.tensor([ends[member] for member in group.members])[:, None]
        for depth in range(layer, len(self._added)):
            added = self._added[depth]
            to, of = ((places.to(added.device) + send(starts, added.device)) for places in (group.slots, came_from))
            self._added[depth] = added.index_put((to,), added[of])

    def _record(self, where: str, layer: int | None, before: tuple[int, ...]) -> None:
        origin: dict[int, Tensor] = {}
        assign: dict[int, Tensor | None] = {}
        for group in self.groups:
            tokens, went = group.told()
            parts = [None] * len(tokens) if went is None else went.unbind()
            for member, row, part in zip(group.members, tokens.unbind(), parts, strict=True):
                origin[member], assign[member] = row, part
        every = range(len(self.samples))
        kept = [origin[at] if at in origin else torch.arange(self.samples[at].fixed) for at in every]
        stage = Stage(where, layer, before, self._counts(), kept, [assign.get(at) for at in every])  # type: ignore[arg-type]
        self.record.stages.append(stage)

    def _counts(self) -> tuple[int, ...]:
        return tuple(self._with_left(sample.fixed for sample in self.samples))

    def _with_left(self, others: Iterable[int]) -> list[int]:
        """Rows of each sample: so many others, and those that are left of its vision tokens."""
        counts = list(others)
        for group in self.groups:
            for member in group.members:
                counts[member] += group.left
        return counts

    def _lay_out(self, layer: int | None) -> RowMap:
        lengths = self._with_left(len(sample.text) for sample in self.samples)
        if not any(lengths):
            raise UnsupportedError(
                "Every token of the prompt has left, since there is no text: keep a token (min_keep=1), or add text."
            )
        device = self.groups[0].samples.device
        left, origin = self._text.to(device), None
        if any(group.assign is not None for group in self.groups):
            origin = torch.arange(self.span, device=device).expand_as(left)
        for group in self.groups:
            columns = group.columns
            left = left.index_put((group.owners, columns), left.new_ones(()))
            if origin is not None:
                origin = origin.index_put((group.owners, columns), group.origin())
        layout = RowMap(left, lengths, origin)
        if self.program.renumbers(layer):
            layout.number_anew()
        elif self.layout is not None:
            layout.number_on(self.layout)
        return layout

    def note_cache_cut(self) -> None:
        """Record that earlier layers' caches were cut to what is left."""
        reduced = [stage.after for stage in self.record.stages if stage.layer is None]
        self._record("kv", None, (*reduced, self.record.vision_tokens)[0])

    def final(self) -> Tensor:
        """Which columns of the call the tokens left at the end stand for: (samples, columns) bool; text is."""
        final = torch.ones_like(self._text, dtype=torch.int32)
        for group in self.groups:
            owners = group.owners.to(final.device)
            final = final.index_put((owners, group.vision.to(final.device)), final.new_zeros(()))
            tokens = group.tokens.to(final.device)
            columns = group.vision.to(final.device).gather(1, tokens.clamp(min=0))
            final = final.index_put((owners, columns), (tokens >= 0).to(final.dtype), accumulate=True)
        return final > 0

    def finish(self) -> None:
        """Let go of what only the layers needed."""
        self.layouts.clear()
        for group in self.groups:
            group.notes.clear()


def _ends_of_runs(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Samples and columns, (runs,) int64 each, of the last vision token of every run."""
    owners = np.repeat(np.arange(len(samples)), [len(sample.vision) for sample in samples])
    runs = np.concatenate([sample.runs.numpy() for sample in samples])
    last = np.ones(len(owners), bool)
    last[:-1] = (np.diff(owners) != 0) | (np.diff(runs) != 0)
    columns = np.concatenate([sample.vision.numpy() for sample in samples])
    return torch.from_numpy(owners[last]), torch.from_numpy(columns[last])
