"""The counter: FLOPs of known products, bytes of known tensors, operators by layer."""

import torch

from tests.bench.counting import Memory, count


def test_a_product_has_two_flops_a_multiply_add_and_attention_is_counted_on_a_cpu():
    matrix, heads = torch.ones(3, 5), torch.ones(1, 2, 7, 4)
    assert count(lambda: matrix @ matrix.T).flops == 2 * 3 * 5 * 3
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count(lambda: attend(heads, heads, heads, is_causal=True)).flops == 2 * (2 * 2 * 7 * 7 * 4)


def test_bytes_are_those_of_new_tensors_and_the_peak_of_those_that_live():
    ones = torch.ones(1000)

    def work():
        kept = ones + 1
        for _ in range(3):
            kept + 1  # made and let go

    counts = count(work)
    assert counts.made == 4 * 4000
    assert counts.peak == 2 * 4000
    assert counts.operators == 4
    assert counts.waits == {}


def test_a_view_is_no_new_tensor():
    ones = torch.ones(10, 10)
    with Memory() as memory:
        ones[2:].unsqueeze(0)
    assert (memory.made, memory.operators > 0) == (0, True)
