import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.attention import BLOCK_NUMBERS, attention_rows, mean_of_busiest, nearness, received_attention
from tests.bench.counting import Memory


def dense(queries, keys, scaling, last_key=None):
    """Attention of every query over every key, head by head, in float64: what eager attention does."""
    heads, groups = queries.shape[0], queries.shape[0] // keys.shape[0]
    out = []
    for head in range(heads):
        logits = queries[head].double() @ keys[head // groups].double().T * scaling
        if last_key is not None:
            for row, last in enumerate(last_key.tolist()):
                logits[row, last + 1 :] = float("-inf")
        out.append(logits.softmax(dim=-1))
    return torch.stack(out).float()


def test_a_softcap_by_hand():
    """Logits 2 and 0 at a cap of 1 are tanh 2 and 0."""
    queries, keys = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    (rows,) = attention_rows(queries, keys, scaling=1.0, softcap=1.0)
    assert rows[0, 0].tolist() == pytest.approx(torch.tensor([2.0, 0.0]).tanh().softmax(0).tolist())


@given(
    groups=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    rows=st.integers(1, 9),
    slots=st.integers(1, 12),
    block=st.integers(1, 200),
    causal=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_rows_equal_dense_attention_in_any_blocks(groups, key_heads, rows, slots, block, causal, seed):
    rng = torch.Generator().manual_seed(seed)
    queries = torch.randn(groups * key_heads, rows, 4, generator=rng)
    keys = torch.randn(key_heads, slots, 4, generator=rng)
    last_key = torch.randint(0, slots, (rows,), generator=rng) if causal else None
    seen = None if last_key is None else lambda some: torch.arange(slots) <= last_key[some, None]
    blocks = list(attention_rows(queries, keys, 0.5, block=block, visible=seen))
    torch.testing.assert_close(torch.cat(blocks, dim=1), dense(queries, keys, 0.5, last_key), atol=1e-5, rtol=0)
    largest = max(part.numel() for part in blocks)
    assert largest <= max(block, groups * key_heads * slots)  # never more than a block, or one row of every head


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("block", [1, 40, 1000])
def test_rows_see_what_they_are_told_to(heads, block):
    rng = torch.Generator().manual_seed(6)
    queries, keys = torch.randn(4, 7, 4, generator=rng), torch.randn(2, 6, 4, generator=rng)
    seen = torch.rand(heads, 7, 6, generator=rng) > 0.4
    seen[..., 2] = True
    blocks = list(attention_rows(queries, keys, 0.5, block=block, visible=lambda rows: seen[:, rows]))
    logits = torch.einsum("hqd,hkd->hqk", queries, keys.repeat_interleave(2, dim=0)) * 0.5
    wanted = logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)
    torch.testing.assert_close(torch.cat(blocks, dim=1), wanted)


def test_received_attention_is_the_mean_of_the_columns_over_several_blocks():
    slots = 1200
    rng = torch.Generator().manual_seed(5)
    queries, keys = torch.randn(4, slots, 4, generator=rng), torch.randn(2, slots, 4, generator=rng)
    assert queries.shape[0] * slots**2 > BLOCK_NUMBERS
    torch.testing.assert_close(received_attention(queries, keys, 0.5), dense(queries, keys, 0.5).mean(dim=(0, 1)))


def test_two_blocks_of_many_live_at_once():
    queries, keys, block = torch.randn(2, 64, 4), torch.randn(2, 512, 4), 8192
    with Memory() as watch:
        sums = list(map(torch.sum, attention_rows(queries, keys, 1.0, block=block)))
    assert len(sums) == 8
    assert 2 * 4 * block <= watch.peak < 2.5 * 4 * block


def test_the_busiest_half_of_three_heads_by_hand():
    """They pay 0.3, 0.1 and 0.4 in all: the first and the last count."""
    paid = torch.tensor([[0.1, 0.2], [0.1, 0.0], [0.4, 0.0]])
    torch.testing.assert_close(mean_of_busiest(paid), torch.tensor([0.25, 0.1]))
    assert torch.equal(mean_of_busiest(paid[:1]), paid[0])
    assert torch.equal(mean_of_busiest(paid, 1), paid[2])
    torch.testing.assert_close(mean_of_busiest(paid, 14), paid.mean(dim=0))


def test_of_heads_that_pay_as_much_the_first_count():
    paid = torch.eye(4)[None].expand(2, 4, 4)
    assert mean_of_busiest(paid).tolist() == [[0.5, 0.5, 0.0, 0.0]] * 2


def test_nearness_by_hand():
    """Ones of two numbers, turned by 0, 60 and 90 degrees: 1, a half, and 0, which is raised to 0.05."""
    angles = torch.tensor([0.0, 60.0, 90.0, 180.0]).deg2rad()
    turned = torch.stack((angles.cos() - angles.sin(), angles.sin() + angles.cos()), dim=1)
    torch.testing.assert_close(nearness(turned[:1], turned), torch.tensor([[1.0, 0.5, 0.05, 0.05]]))
    torch.testing.assert_close(nearness(3 * turned[:1], 3 * turned)[0, 1], torch.tensor(0.5))  # scaled RoPE
