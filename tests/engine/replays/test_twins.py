"""What a recording copies, keeps and compares is decided for every attribute: a new one is in no list."""

from dataclasses import fields

import pytest
import torch

from foveate.engine.forward import ROW_TENSORS, Forward, Outcome, RowMap
from foveate.engine.left import LEFT_TENSORS, Left
from foveate.engine.replays import twins
from foveate.engine.trace import StageRecord

ROWS = RowMap(torch.tensor([[True, False, True], [False, False, True]]), [2, 1])
COPIED = ("outcome", "position_ids", "additions", "memo")
"""What a twin has of its own."""
UNREAD = (
    *("program", "family", "cache", "noted", "steps", "segment", "unpadded", "entered"),
    *("ends_turn", "kinds", "asking", "most", "asked"),
)
"""What recorded layers do not read, or what the key of a call has already."""
NAMES = [*twins.IN_LAYOUT, *twins.HELD, *COPIED, *UNREAD]
LISTS = {
    Forward: {*NAMES, "samples", "plans"} - {"backend"},  # a property
    Left: {*LEFT_TENSORS, "member", "sample", "sizes", "begun", "_columns"},
    Outcome: {"record", "lefts", "rows", "row_maps"},
    StageRecord: {"_origin", "_assign", "where", "layer", "before", "after", "rows"},
}
"""Changed, compared or shared: what `twins` does with each attribute."""


@pytest.mark.parametrize("kind", LISTS)
def test_every_attribute_is_in_one_list(kind):
    assert {field.name for field in fields(kind)} == LISTS[kind]


def test_every_attribute_of_a_row_map_is_in_one_list():
    assert vars(ROWS).keys() == {*ROW_TENSORS, "lengths", "numbered", "_span", "_copies", "memo"}


def test_no_attribute_of_a_forward_is_in_two_lists():
    assert len(NAMES) == len(set(NAMES))
