"""Samples whose vision tokens are alike in number, so that one operator serves all of them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from foveate.core.cut import note_of
from foveate.core.host import send
from foveate.core.rank import into_runs
from foveate.engine.forms import EngineCut
from foveate.engine.samples import Sample
from foveate.errors import SettingError

__all__ = ["Bucket", "Mine", "buckets_of", "each"]

Mine = Callable[[Tensor], Tensor]
"""Of a tensor with the samples in front, the part of the sample that is looked at."""


def each(run: Callable[[dict[str, Any], Mine], dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    """What `run` answers for every sample: tensors by name (or by a name of a name) go in without the samples in front,
    and come out with them again."""
    count = len(next(iter(given.values())))
    if count == 1:
        return _with(lambda one: one[None], run(_with(lambda one: one[0], given), lambda one: one[0]))

    def alone(place: Tensor, mine: dict[str, Any]) -> dict[str, Any]:
        return run(mine, lambda one: one[place.expand(1)][0])

    found: dict[str, Any] = torch.func.vmap(alone)(torch.arange(count, device=_device(given)), given)
    return found


def _with(change: Callable[[Tensor], Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: change(one) if isinstance(one, Tensor) else _with(change, one) for name, one in given.items()}


def _device(given: Mapping[str, Any]) -> torch.device:
    return next(one.device for one in given.values() if isinstance(one, Tensor))


@dataclass(slots=True, eq=False)
class Bucket:
    """Some samples of a call that have as many images as each other, of the same sizes, and have lost as many tokens.

    Attributes:
        members: Which samples.
        samples: The same, (samples,) int64.
        vision: Columns of their vision tokens as they entered, (samples, entered) int64, ascending.
        slots: Where the rows that are left are stored, (samples, left) int64: ordinals into `vision`, ascending.
        tokens: Which tokens these rows stand for, (samples, left) int64: ordinals into `vision` in row order; −1 for
            none of its own. The same as `slots` until something is merged or reordered.
        sizes: Rows left of each image, in order; None once only the device knows.
        runs: Which run of columns each vision token is in, (samples, entered) int64; None where each image has one.
        known: What the host knows of each of them.
        assign: The row each vision token went into, (samples, entered) int64, −1 if it was dropped; None while nothing
            is merged.
        notes: What the method remembers, with the samples in front (see `EngineView.notes`).
        ordinals: See `Sample.ordinals`, with the samples in front.
    """

    members: tuple[int, ...]
    samples: Tensor
    vision: Tensor
    slots: Tensor
    tokens: Tensor
    sizes: tuple[int, ...] | None
    runs: Tensor | None
    known: tuple[Sample, ...]
    assign: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    ordinals: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, members: Sequence[int], samples: Sequence[Sample], device: torch.device) -> Self:
        """These of a call's samples, which must be alike."""

        def stacked(tensors: Sequence[Tensor]) -> Tensor:
            return send(torch.stack(list(tensors)), device)

        mine = [samples[member] for member in members]
        vision = stacked([sample.vision for sample in mine])
        slots = torch.arange(vision.shape[1], device=device).expand_as(vision)
        first, pairs = mine[0], [sample.ordinals for sample in mine if sample.ordinals is not None]
        return cls(
            members=tuple(members),
            samples=send(torch.tensor(members), device),
            vision=vision,
            slots=slots,
            tokens=slots,
            sizes=first.sizes,
            runs=stacked([sample.runs for sample in mine]) if first.parted else None,
            known=tuple(mine),
            ordinals=(stacked([free for free, _ in pairs]), stacked([fixed for _, fixed in pairs])) if pairs else None,
        )

    @property
    def first(self) -> Sample:
        """One of the samples, for what is the same in all."""
        return self.known[0]

    @property
    def left(self) -> int:
        """Rows left of each sample."""
        return self.tokens.shape[1]

    @property
    def columns(self) -> Tensor:
        """Where the rows that are left are stored, (samples, left) int64: columns of the call."""
        return self.vision.gather(1, self.slots)

    @property
    def owners(self) -> Tensor:
        """`samples` with a dimension for rows."""
        return self.samples[:, None]

    def origin(self) -> Tensor:
        """The column whose position each row has, (samples, left) int64; −1 for a row that is no token of its own."""
        return torch.where(self.tokens < 0, self.tokens, self.vision.gather(1, self.tokens.clamp(min=0)))

    def text_behind(self, start: int, stop: int) -> tuple[int, bool]:
        """As many text rows as stand behind the rows `start` to `stop` in any sample, or more; and whether that many do
        in all."""
        sizes = self.sizes or ()
        ends = itertools.accumulate(sizes)
        image = next((at for at, end in enumerate(ends) if (end - sizes[at], end) == (start, stop)), None)
        if image is None:
            return max(len(sample.text) for sample in self.known), False
        counts = {sample.text_from[image] for sample in self.known}
        return max(counts), counts == {sample.text_after[image] for sample in self.known} and len(counts) == 1

    def to(self, device: torch.device) -> None:
        """Move there: a model may be spread over devices."""
        if self.samples.device == device:
            return
        for name in ("samples", "vision", "slots", "tokens", "runs", "assign"):
            one = getattr(self, name)
            setattr(self, name, None if one is None else one.to(device))
        self.notes = {name: note.to(device) for name, note in self.notes.items()}
        self.ordinals = None if self.ordinals is None else (self.ordinals[0].to(device), self.ordinals[1].to(device))

    def part(self, places: Sequence[int]) -> "Bucket":
        """The samples at these places alone."""
        if len(places) == len(self.members):
            return self
        at = send(torch.tensor(places), self.samples.device)
        return Bucket(
            members=tuple(self.members[place] for place in places),
            samples=self.samples[at],
            vision=self.vision[at],
            slots=self.slots[at],
            tokens=self.tokens[at],
            sizes=self.sizes,
            runs=None if self.runs is None else self.runs[at],
            known=tuple(self.known[place] for place in places),
            assign=None if self.assign is None else self.assign[at],
            notes={name: note[at] for name, note in self.notes.items()},
            ordinals=None if self.ordinals is None else (self.ordinals[0][at], self.ordinals[1][at]),
        )

    def take(self, cut: EngineCut) -> tuple[Tensor | None, Tensor]:
        """Let leave who leaves, in everything but the stream.

        Tokens stay in their places. Merged rows go to the first places of the run of the token they stand for; a row
        that is no token of its own, to its image's first run.

        Args:
            cut: With the samples in front of all its tensors.

        Returns:
            Merged rows in the order they are stored in, (samples, rows, …), None where nothing is merged; and the
            ordinals into `vision` that rows were stored at before, (samples, rows) int64.
        """
        merges = cut.rows is not None
        if merges and (self.sizes is None or cut.sizes is None):
            raise SettingError(
                "A stage that merges must know whose rows are whose: give it unit='image', and a count that the host "
                "knows."
            )
        given: dict[str, Any] = {"kept": cut.kept, "slots": self.slots, "tokens": self.tokens, "notes": self.notes}
        known = {"rows": cut.rows, "step": cut.assign, "assign": self.assign, "runs": self.runs}
        given |= {"fresh": dict(cut.notes)} | {name: one for name, one in known.items() if one is not None}
        found = each(lambda mine, _: _taken(mine, self.sizes, cut.sizes), given)
        self.slots, self.tokens, self.notes = found["slots"], found["tokens"], found["notes"]
        self.assign, self.sizes = found.get("assign"), cut.sizes
        return found.get("rows"), found["before"]

    def told(self) -> tuple[Tensor, Tensor | None]:
        """`tokens` and `assign` as a trace tells them, which counts all vision tokens, also those always kept."""
        if self.ordinals is None:
            return self.tokens, self.assign
        free, fixed = self.ordinals
        names = torch.where(self.tokens < 0, self.tokens, free.gather(1, self.tokens.clamp(min=0)))
        order = torch.cat((free.gather(1, self.slots), fixed), dim=1).argsort(dim=1)
        origin = torch.cat((names, fixed), dim=1).gather(1, order)
        if self.assign is None:
            return origin, None
        row = order.argsort(dim=1)
        assign = row.new_empty(len(free), free.shape[1] + fixed.shape[1])
        assign.scatter_(1, free, torch.where(self.assign < 0, self.assign, row.gather(1, self.assign.clamp(min=0))))
        assign.scatter_(1, fixed, row[:, names.shape[1] :])
        return origin, assign


def _taken(mine: dict[str, Any], sizes: tuple[int, ...] | None, counts: tuple[int, ...] | None) -> dict[str, Any]:
    """`Bucket.take` for one sample."""
    kept, slots, tokens = mine["kept"], mine["slots"], mine["tokens"]
    rows, step, fresh = mine.get("rows"), mine.get("step"), mine["fresh"]
    places = kept
    if rows is not None:
        assert sizes is not None
        assert counts is not None
        starts = [0, *itertools.accumulate(sizes)]
        if "runs" in mine:
            firsts = [at for at, count in zip(starts, counts, strict=False) for _ in range(count)]
            here = mine["runs"][slots]
            of_row = torch.where(kept < 0, send(torch.tensor(firsts), kept.device), kept)
            order, places = into_runs(here[of_row], here)
            kept, rows = kept[order], rows[order]
            fresh = {name: note[order] for name, note in fresh.items()}
            if step is not None:
                step = torch.where(step < 0, step, order.argsort()[step.clamp(min=0)])
        else:
            parts = [torch.arange(at, at + count) for at, count in zip(starts, counts, strict=False)]
            places = (
                send(torch.cat(parts), kept.device) if len(parts) > 1 else torch.arange(len(kept), device=kept.device)
            )
    safe = kept if rows is None else kept.clamp(min=0)
    found = {
        "before": slots[safe],
        "slots": slots[places],
        "tokens": tokens[safe] if rows is None else torch.where(kept < 0, kept, tokens[safe]),
        "notes": {name: note_of(note, kept, rows) for name, note in mine["notes"].items()} | fresh,
    }
    if rows is not None:
        found["rows"] = rows
    before = mine.get("assign")
    if step is None and before is not None:
        step = torch.full_like(tokens, -1).index_put((kept,), torch.arange(len(kept), device=kept.device))
    if step is not None:
        found["assign"] = step if before is None else torch.where(before < 0, before, step[before.clamp(min=0)])
    return found


def buckets_of(samples: Sequence[Sample], together: bool, device: torch.device) -> list[Bucket]:
    """The samples that have vision tokens, those alike together."""
    alike: dict[Any, list[int]] = {}
    for index, sample in enumerate(samples):
        if len(sample.vision):
            alike.setdefault(_looks(sample) if together else index, []).append(index)
    return [Bucket.of(members, samples, device) for members in alike.values()]


def _looks(sample: Sample) -> Any:
    """What is the same in samples that are alike."""
    tower = [
        None
        if item.cut is None
        else (len(item.cut.kept), item.cut.rows is None, item.cut.assign is None, tuple(sorted(item.cut.notes)))
        for item in sample.items
    ]
    text = [bool(after) for after in sample.text_after]
    sizes = (sample.sizes, sample.entered_sizes, sample.started_sizes, sample.fixed, sample.parted)
    return (*sizes, tuple(text), tuple(tower))
