"""What layers are handed beside their rows, known by its shape alone."""

import pytest
import torch

from foveate.engine.arguments import _with_pads
from foveate.engine.streams import Streams
from tests.engine.test_rows import entering, kept, merged


@pytest.fixture
def rows():
    """Two samples of five columns, of which three and two are left: rows 0 2 3, and a pad, 2 and 4."""
    return kept(entering([range(5)] * 2, span=5), [[0, 2, 3], [2, 4]])


def test_what_has_a_value_for_each_column_is_read_at_the_rows(rows):
    ids = torch.arange(10).view(2, 5)
    assert rows.reduce(ids).tolist() == [[0, 2, 3], [7, 7, 9]]
    assert rows.reduce(ids[:1]).tolist() == [[0, 2, 3], [2, 2, 4]]  # shared by the samples
    assert rows.reduce(ids[..., None].float()).shape == (2, 3, 1)
    assert rows.reduce(ids[None].expand(3, -1, -1))[2].tolist() == [[0, 2, 3], [7, 7, 9]]  # M-RoPE's axes in front
    wide = torch.randn(2, 5, 4, 6)
    assert torch.equal(rows.reduce(wide)[1, 2], wide[1, 4])
    table = torch.polar(torch.ones(1, 5, 4), torch.randn(1, 5, 4))
    assert torch.equal(rows.reduce(table)[0, 1], table[0, 2])


def test_what_has_none_stays_as_it_is(rows):
    for value in (None, 5, "sdpa", {"a": 1}, torch.randn(3), torch.randn(5), torch.randn(2, 4), torch.randn(3, 5, 2)):
        assert rows.reduce(value) is value


def test_each_part_of_a_sequence_is_looked_at(rows):
    pair = rows.reduce((torch.arange(10.0).view(2, 5, 1), None))
    assert pair[0][1, 2] == 9
    assert pair[1] is None


def test_numbers_go_with_the_place_and_ids_with_the_token():
    """Of a merged row that is stored in column 0 and stands for column 3."""
    rows, _ = merged(entering([range(4)], span=4), [[3]], [[0] * 4])
    assert rows.reduce(torch.tensor([[10, 11, 12, 13]])).tolist() == [[13]]
    assert rows.reduce(torch.tensor([[10.0, 11.0, 12.0, 13.0]])).tolist() == [[10.0]]


def test_pads_are_hidden_in_a_mask_of_rows(rows):
    mask = rows.reduce(torch.ones(2, 5, dtype=torch.long))
    assert _with_pads("conv_mask", mask, rows).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert _with_pads("types", mask, rows) is mask
    assert _with_pads("mask", mask[..., None], rows).shape == (2, 3, 1)


@pytest.mark.parametrize("shape", [(2, 7), (1, 1)])
@pytest.mark.parametrize("first", [True, False])
def test_streams_are_one_and_several_again(first, shape):
    hidden = torch.randn(3, *shape, 4) if first else torch.randn(*shape, 3, 4)
    streams = Streams.of(hidden, shape)
    assert (streams.first, streams.count) == (first, 3)
    folded = streams.fold(hidden)
    assert folded.shape == (*shape, 12)
    assert torch.equal(streams.unfold(folded), hidden)
    answer = streams.around(lambda states: (2 * states, "cache"))(folded)
    assert torch.equal(answer[0], 2 * folded)
    assert answer[1] == "cache"
