"""Attention rows put together block by block come to what all of them do at once."""

import pytest
import torch

from foveate.contract import Attention, Keys
from foveate.engine.attending import put_together, streams


def signals_of(rows, renormalise=False):
    overs = ("mean", "sum", "max", "share")
    return {over: Attention(rows=rows, layer="next", over=over, renormalise=renormalise) for over in overs}


def reduced(signals, blocks):
    values = put_together([*signals.values()], blocks)
    return {over: values[signal] for over, signal in signals.items()}


@pytest.mark.parametrize("rows", ["after", "vision"])
@pytest.mark.parametrize("block", [1, 3, 7])
@pytest.mark.parametrize("renormalise", [False, True])
def test_blocks_of_attention_rows_reduce_to_what_all_of_them_do(rows, block, renormalise):
    attention = torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(0))
    shares = attention / attention.sum(dim=2, keepdim=True) if renormalise else attention
    total = shares.sum(dim=1)
    share = total / total.sum(dim=1, keepdim=True)
    wanted = {"mean": total / 7, "sum": total, "max": shares.amax(dim=1), "share": share}
    torch.testing.assert_close(reduced(signals_of(rows, renormalise), attention.split(block, dim=1)), wanted)


def test_rows_that_a_sample_lacks_do_not_count_in_its_mean():
    attention = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1))
    attention[1, 0] = 0.0  # this sample has two rows of text behind its image, the other three
    means = reduced(signals_of("after"), [attention])["mean"]
    torch.testing.assert_close(means[0], attention[0].mean(dim=0))
    torch.testing.assert_close(means[1], attention[1, 1:].mean(dim=0))


def test_heads_are_put_together_apart():
    """Two samples of three heads: what each head's rows come to is what they come to alone."""
    attention = torch.rand(2, 3, 7, 5, generator=torch.Generator().manual_seed(2))
    signals = signals_of("after")
    for over, got in reduced(signals, attention.split(4, dim=2)).items():
        heads = [reduced(signals, [attention[:, head]])[over] for head in range(3)]
        torch.testing.assert_close(got, torch.stack(heads, dim=1))


def test_signals_of_the_same_rows_are_read_once():
    mean, peak = (Attention(rows="after", layer="ran", over=over) for over in ("mean", "max"))
    last = Attention(rows="last", layer="ran")
    assert streams([mean, last, Keys(), peak]) == {mean: [mean, peak], peak: [mean, peak], last: [last]}
