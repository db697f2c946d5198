"""Which request of a step is which, and what it has lost, beside others that share its blocks or take them over."""

from types import SimpleNamespace as Some

import numpy
import torch

from foveate_vllm.layout import Batch
from foveate_vllm.lost import Lost

BLOCK = 4


def step(*requests, numbers=None):
    """A step's batch and what vLLM says of it: (rows, tokens behind the step, blocks) of each request."""
    counts = [count for count, _, _ in requests]
    starts = (0, *torch.tensor(counts).cumsum(0).tolist())
    table = torch.zeros(len(requests), 6, dtype=torch.int32)
    for row, (_, _, blocks) in zip(table, requests, strict=True):
        row[: len(blocks)] = torch.tensor(blocks)
    batch = Batch(starts, tuple(length for _, length, _ in requests))
    return batch, Some(block_table_tensor=table, req_idx=None if numbers is None else numpy.array(numbers)), BLOCK


def test_a_request_is_known_by_the_block_of_its_last_token_wherever_it_stands_in_a_step():
    lost = Lost()
    assert lost.of(*step((6, 6, [1, 2]), (3, 3, [3]))) == ((), ())
    lost.keep({0: (2, 3)})
    assert lost.of(*step((1, 4, [3]), (1, 7, [1, 2]))) == ((), (2, 3))
    assert lost.of(*step((1, 9, [1, 2, 5]))) == ((2, 3),)


def test_a_text_that_reads_the_first_blocks_of_a_prompt_with_images_has_lost_nothing():
    lost = Lost()
    lost.of(*step((10, 10, [1, 2, 3])))
    lost.keep({0: (5,)})
    assert lost.of(*step((2, 6, [1, 7]), (1, 11, [1, 2, 3]))) == ((), (5,))


def test_a_block_that_another_request_fills_anew_says_nothing():
    lost = Lost()
    lost.of(*step((6, 6, [1, 2])))
    lost.keep({0: (2,)})
    assert lost.of(*step((3, 7, [9, 2]))) == ((),)  # behind a block of the prefix cache
    assert lost.of(*step((1, 8, [9, 2]))) == ((),)


def test_a_request_that_is_computed_again_has_lost_nothing_yet():
    lost = Lost()
    lost.of(*step((6, 6, [1, 2])))
    lost.keep({0: (2,)})
    assert lost.of(*step((6, 6, [1, 2]))) == ((),)
    assert not lost


def test_runner_v2_numbers_its_requests_and_says_which_begin():
    lost = Lost()
    lost.of(*step((6, 6, [1, 2]), (3, 3, [3]), numbers=[4, 0]))
    lost.keep({0: (2,)})
    assert lost.of(*step((1, 4, [3]), (1, 7, [1, 2]), numbers=[0, 4])) == ((), (2,))
    lost.begin(4)
    assert lost.of(*step((2, 6, [1, 2]), numbers=[4])) == ((),)
