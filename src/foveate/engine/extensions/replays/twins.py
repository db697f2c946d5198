"""Each layer, at once: a copy of a begun forward, which is recorded. It reads copies of all tensors."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.tensors import Change, Memo, on_tensors
from foveate.engine.forward import Forward, Outcome
from foveate.engine.prompt_samples import Sample
from foveate.engine.rows import Rows


def held_by(forward: Forward) -> list[Tensor | None]:
    """Return tensors that its layers read, equal for one layout: a recording keeps those of the first call alive."""
    return [forward.first, forward.entering_rows, forward.image_ends, forward.live]


def twin_of(forward: Forward, change: Change, kwargs: dict[str, Any]) -> Forward:
    """Return a copy of a begun forward with `change` applied to its tensors, for arguments `kwargs`."""
    additions = None if forward.additions is None else forward.family.later_additions(kwargs)
    outcome, ids = outcome_with(forward.outcome, change), on_tensors(forward.position_ids, change)
    return replace(forward, outcome=outcome, position_ids=ids, additions=additions, memo=Memo())


def outcome_with(outcome: Outcome, change: Change) -> Outcome:
    """Return an outcome with `change` applied to its tensors."""
    changed = _with_tables(outcome, lambda rows: rows.map(change))
    return replace(changed, cuts=[cut.map(change) for cut in outcome.cuts])


def outcome_without(outcome: Outcome, pads: int, cut: Change, samples: Sequence[Sample]) -> Outcome:
    """Return an outcome without `pads` trailing columns of each sample; `cut` removes as many from a row's end."""
    return _with_tables(outcome, lambda rows: rows.shorter(pads, cut, samples))


def _with_tables(outcome: Outcome, change: Callable[[Rows], Rows]) -> Outcome:
    """Return an outcome with changed tables. A table that several layers ran on is changed once."""
    copies = Memo()
    table, *ran = [rows and copies.once(partial(change, rows), rows) for rows in (outcome.table, *outcome.ran)]
    return replace(outcome, table=table, ran=ran)


# -- layouts -------------------------------------------------------------------------------------------------------


def layout_of(forward: Forward) -> Hashable:
    """Return all facts of a begun forward on the host that its layers depend on, as a hashable value."""
    outcome = forward.outcome
    values = forward.span, forward.count, forward.drops, forward.passes_rows, forward.caches, forward.backend
    plans = tuple([None if plan is None else tuple(plan) for plan in forward.plans])
    samples, table = tuple([_layout_of(sample) for sample in forward.samples]), outcome.table
    left = None if table is None else table.layout
    return *values, forward.image_ends is None, plans, samples, left, len(outcome.cuts)


def _layout_of(sample: Sample) -> Hashable:
    """Return a hashable value that is equal for prompts that differ only in the content of images and text."""
    numbers = replace(sample, media=[])  # images are known by their sizes
    values = [_plain(getattr(numbers, field.name)) for field in fields(numbers)]
    return sample.entered_sizes, sample.started_sizes, *values


def _plain(value: Any) -> Hashable:
    """Return a hashable value that is equal for equal tensors, and for equal lists of them."""
    if isinstance(value, Tensor):
        return value.numpy().tobytes()
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    plain: Hashable = value
    return plain


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
    if forward.drops:
        padded.outcome = replace(forward.outcome, table=forward.table.longer(pads, samples))
        padded.entering_rows = forward.entering_rows + pads
    return padded
