"""Each layer, at once: a copy of a begun forward, which is recorded. It reads copies of all tensors."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.tensors import Change, Memo, on_tensors, send
from foveate.engine.forward import Forward, Outcome, RowMap
from foveate.engine.left import Left
from foveate.engine.prompt_samples import Sample
from foveate.engine.trace import StageRecord

IN_LAYOUT = ("span", "count", "drops", "hands_on", "caches", "backend")
"""Attributes of a forward that its layers depend on, beside its samples, plans and outcome."""
HELD = ("text", "first", "entering_rows", "image_ends", "live")
"""Tensors that its layers read, equal for one layout: a recording keeps those of the first call alive."""


def twin_of(forward: Forward, change: Change, kwargs: dict[str, Any]) -> Forward:
    """Return a copy of a begun forward with `change` applied to its tensors, for arguments `kwargs`."""
    additions = None if forward.additions is None else forward.family.later_additions(kwargs)
    outcome, ids = outcome_with(forward.outcome, change), on_tensors(forward.position_ids, change)
    return replace(forward, outcome=outcome, position_ids=ids, additions=additions, memo=Memo())


def outcome_with(outcome: Outcome, change: Change) -> Outcome:
    """Return an outcome with `change` applied to its tensors, and a copy of the record."""
    record = outcome.record
    if record is not None:
        record = replace(record, stages=[_stage_with(stage, change) for stage in record.stages])
    lefts = [replace(left)._with(change) for left in outcome.lefts]
    return replace(_with_maps(outcome, lambda rows: rows.with_tensors(change)), record=record, lefts=lefts)


def outcome_without(outcome: Outcome, pads: int, cut: Change, samples: Sequence[Sample]) -> Outcome:
    """Return an outcome without `pads` trailing columns of each sample; `cut` removes as many from a row's end."""

    def shorter(rows: RowMap) -> RowMap:
        copy = rows.with_tensors(cut)
        copy.lengths, copy._span = tuple([length - pads for length in rows.lengths]), rows._span - pads
        copy.owners = rows.owners
        if rows._real is not None and copy.valid is not None:
            copy._real = copy.valid[..., None], cut(rows._real[1])
        return copy

    return replace(_with_maps(outcome, shorter), lefts=[_of_sample(left, samples) for left in outcome.lefts])


def _with_maps(outcome: Outcome, change: Callable[[RowMap], RowMap]) -> Outcome:
    """Return an outcome with changed maps. A map that occurs twice is changed once."""
    copies: dict[int, RowMap] = {}

    def of(rows: RowMap | None) -> RowMap | None:
        if rows is None:
            return None
        if id(rows) not in copies:
            copies[id(rows)] = copy = change(rows)
            copy.numbered = of(rows.numbered)
        return copies[id(rows)]

    return replace(outcome, rows=of(outcome.rows), row_maps=[of(rows) for rows in outcome.row_maps])


def _stage_with(stage: StageRecord, change: Change) -> StageRecord:
    """Return a stage's record with `change` applied to its tensors."""
    assign = [on_tensors(part, change) for part in stage._assign]
    return replace(stage, _origin=[change(part) for part in stage._origin], _assign=assign)


def _of_sample(left: Left, samples: Sequence[Sample]) -> Left:
    """Return what is left of a sample, with the sample taken from another description of the batch."""
    sample = samples[left.member]
    return replace(left, sample=sample, words=send(sample.words, left.words.device))


# -- layouts -------------------------------------------------------------------------------------------------------


def layout_of(forward: Forward) -> Hashable:
    """Return all facts of a begun forward on the host that its layers depend on, as a hashable value."""
    outcome = forward.outcome
    assert outcome.record is not None
    values = [getattr(forward, name) for name in IN_LAYOUT]
    plans = tuple([None if plan is None else tuple(plan) for plan in forward.plans])
    lefts = tuple([(left.member, left.sizes, tuple(left.notes), tuple(left.text)) for left in outcome.lefts])
    samples = tuple([_layout_of(sample) for sample in forward.samples])
    return *values, forward.image_ends is None, plans, samples, lefts, len(outcome.record.stages)


def _layout_of(sample: Sample) -> Hashable:
    """Return a hashable value that is equal for prompts that differ only in the content of images and text."""
    values = [getattr(sample, field.name) for field in fields(sample) if field.name not in ("media", "ordinals")]
    values += sample.ordinals or ()
    plain = [value.numpy().tobytes() if isinstance(value, Tensor) else value for value in values]
    return sample.entered_sizes, sample.started_sizes, *plain


def is_unpadded(forward: Forward) -> bool:
    """Return whether no column of a forward's prompt is padding."""
    return all(sample.live == forward.span for sample in forward.samples)


def with_pads(forward: Forward, pads: int) -> Forward:
    """Return a forward with `pads` more text columns behind each sample. No sample may have padding."""
    more = torch.arange(forward.span, forward.span + pads)
    samples = [
        replace(
            sample,
            live=sample.live + pads,
            text=torch.cat((sample.text, more)),
            words=torch.cat((sample.words, more)),
            text_after=tuple([count + pads for count in sample.text_after]),
            text_from=tuple([count + pads for count in sample.text_from]),
            ends=False,
        )
        for sample in forward.samples
    ]
    padded = replace(forward, span=forward.span + pads, samples=samples, live=None)
    padded.outcome = replace(forward.outcome, lefts=[_of_sample(left, samples) for left in forward.outcome.lefts])
    if forward.drops:
        padded.text = nn.functional.pad(forward.text, (0, pads), value=True)
        padded.entering_rows = forward.entering_rows + pads
    if forward.outcome.rows is not None:  # the tower already dropped tokens
        padded.outcome.rows = None
        padded.lay_out(forward.outcome.rows.numbered is not None)
    return padded
