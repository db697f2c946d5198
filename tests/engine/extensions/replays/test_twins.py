"""What a recording copies, keeps and compares is decided for every attribute: a new one is in no list."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from foveate.engine.extensions.replays.twins import outcome_with
from foveate.engine.forward import CutNote, Forward, Outcome
from tests.engine.test_rows import entering, kept, merged

COMPARED = ("span", "count", "drops", "passes_rows", "caches", "plans", "samples")
"""What calls of one layout have in common, beside the attention kernel."""
HELD = ("first", "entering_rows", "image_ends", "live")
"""Tensors that are equal for one layout."""
COPIED = ("outcome", "position_ids", "additions", "memo")
"""What a twin has of its own."""
UNREAD = (
    *("program", "family", "cache", "extensions", "reads", "passed_on", "unpadded", "entered"),
    *("is_prompt", "goes_on", "is_prefill", "uses_cache"),
)
"""What recorded layers do not read, or what the key of a call has already."""
NAMES = [*COMPARED, *HELD, *COPIED, *UNREAD]
LISTS = {
    Forward: {*NAMES},
    Outcome: {"table", "ran", "cuts"},
}
"""Changed, compared or shared: what `twins` does with each attribute."""


@pytest.mark.parametrize("kind", LISTS)
def test_every_attribute_is_in_one_list(kind):
    assert {field.name for field in fields(kind)} == LISTS[kind]


def test_no_attribute_of_a_forward_is_in_two_lists():
    assert len(NAMES) == len(set(NAMES))


def tensors_in(value, seen):
    """Every tensor in nested values and attributes, but of samples, which are on the host."""
    if id(value) in seen or type(value).__name__ in ("Sample", "Memo"):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from (tensor for part in value.values() for tensor in tensors_in(part, seen))
    elif isinstance(value, list | tuple):
        yield from (tensor for part in value for tensor in tensors_in(part, seen))
    elif hasattr(value, "__dataclass_fields__"):
        parts = [getattr(value, name) for name in value.__dataclass_fields__]
        yield from (tensor for part in parts for tensor in tensors_in(part, seen))


def test_a_twin_shares_no_tensor_of_the_outcome():
    first, _ = merged(entering([[1, 2, 5], [3, 4]]), [[0, -1], [0]], [[0, 1, 1], [0, 0]])
    first.put("mine", torch.ones(2, first.read.shape[1]))
    last = kept(first, [[1], [0]])
    last.put_note(0, "size", torch.ones(1))
    last.about[0]["raters"] = torch.ones(1, 3)
    cut = CutNote("layer", 1, (3, 2), (1, 1), last.steps, last.columns)
    outcome = Outcome(last, [None, first, last], [cut])
    own = list(tensors_in(outcome, {}))
    copies = {id(tensor) for tensor in tensors_in(outcome_with(outcome, torch.clone), {})}
    assert len(own) > 30
    assert not copies & set(map(id, own))
