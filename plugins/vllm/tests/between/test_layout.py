"""Where keys and values go behind a cut, beside a plain loop; and the images of a step."""

import torch
from hypothesis import given, strategies as st

from foveate_vllm.layout import Batch, Images, Layout

BLOCK = 4
requests = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 8)), min_size=1, max_size=5)


def slots_one_by_one(counts, lengths, table):
    """A request's last rows stand in the last of its slots, in order."""
    slots = []
    for request, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        for place in range(length - count, length):
            slots.append(int(table[request, place // BLOCK]) * BLOCK + place % BLOCK)
    return slots


@given(requests)
def test_rows_stand_behind_one_another_in_the_requests_own_blocks(drawn):
    counts = [count for count, _, _ in drawn]
    earlier = [before for _, before, _ in drawn]
    dropped = [min(gone, before) for _, before, gone in drawn]
    lengths = [count + before for count, before in zip(counts, earlier, strict=True)]
    starts = (0, *torch.tensor(counts).cumsum(0).tolist())
    batch = Batch(starts, tuple(lengths))
    table = torch.randperm(len(drawn) * 7).view(len(drawn), 7)
    layout = Layout(batch, dropped, None, counts, torch.device("cpu"))
    left = torch.tensor(lengths) - torch.tensor(dropped)
    assert layout.slots(left, table, BLOCK).tolist() == slots_one_by_one(counts, left.tolist(), table)


def test_images_are_those_of_the_request_in_whose_rows_they_are():
    batch = Batch((0, 5, 6, 12), (5, 9, 6))
    places = torch.tensor([0, 1, 1, 1, 0, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)
    images = Images.of(places, [torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(2, 2)])
    assert images.of_requests(batch) == {0: (3,), 2: (2, 2)}
