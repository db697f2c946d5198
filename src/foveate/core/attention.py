"""Attention rows: the probabilities of only the scoring queries, without a full attention matrix."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from foveate.core.tensors import BLOCK_NUMBERS, take_along

LEAST_NEARNESS = 0.05
"""The smallest value that `nearness` returns, so that dividing by it raises nothing more than twentyfold.

With RoPE of base 10,000 and heads of 128 (LLaVA-1.5), the bound applies from a distance of 1,109 tokens on. From 1,707
on the product may be below 0: it no longer separates near from far, and dividing by it would invert the order of
tokens.
"""


def attention_rows(
    queries: Tensor,
    keys: Tensor,
    scaling: float,
    block: int = BLOCK_NUMBERS,
    visible: Callable[[slice], Tensor] | None = None,
    softcap: float | None = None,
    samples: int = 1,
) -> Iterator[Tensor]:
    """Post-softmax attention of some query rows, float32, one block of rows at a time.

    The heads of several samples may be given one after another. Then the result of `visible` has the samples as its
    first dimension.

    Args:
        queries: (heads, rows, head size), after RoPE, any float dtype.
        keys: (key heads, slots, head size), after RoPE. Groups of query heads share a key head if there are fewer of
            them.
        scaling: Factor of the logits, usually 1 / √(head size).
        block: Float32 numbers that a block of logits may hold.
        visible: Called with a slice of the rows. Returns which slots they see, ([[samples,] heads or 1,] those rows,
            slots) bool. None: every row sees all.
        softcap: The bound c of the logits, c · tanh(logit / c) (Gemma 2). None: no bound.
        samples: Number of samples that the heads belong to.

    Yields:
        (heads, some rows, slots) float32, the blocks of rows in order.
    """
    heads, rows, size = queries.shape
    key_heads, slots, _ = keys.shape
    groups = heads // key_heads
    step = max(1, block // max(1, heads * slots))
    transposed = keys.float().transpose(1, 2)
    for start in range(0, rows, step):
        part = queries[:, start : start + step].float()
        count = part.shape[1]
        # Query heads that share a key head are stacked as additional rows of it. For 4 heads and 2 key heads:
        # (4, count, size) -> (2, 2 · count, size)
        grouped = part.reshape(key_heads, groups * count, size)
        logits = (grouped @ transposed).view(heads, count, slots)
        logits.mul_(scaling)
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        if visible is not None:
            some = slice(start, start + step)
            _hide(logits.view(samples, -1, count, slots), ~visible(some))
        logits = logits.softmax(dim=-1)  # rebinds the name, so at most two blocks are alive at once
        yield logits


def _hide(logits: Tensor, hidden: Tensor) -> None:
    """Give hidden slots no attention, in place.

    The mask is added, because filling with a mask that is broadcast over heads is slow.

    Args:
        logits: (samples, heads, rows, slots).
        hidden: bool, of that shape or broadcast to it.
    """
    nothing = torch.zeros_like(hidden, dtype=logits.dtype).masked_fill_(hidden, float("-inf"))
    logits.add_(nothing)


def received_attention(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """The attention that each key receives if every query sees every key: (keys,) float32.

    The mean over heads and queries, for towers without a CLS. Shapes as in `attention_rows`.
    """
    total = torch.zeros(keys.shape[1], dtype=torch.float32, device=keys.device)
    for probabilities in attention_rows(queries, keys, scaling):
        total += probabilities.mean(dim=0).sum(dim=0)
        del probabilities  # free it before the next block is made
    return total / queries.shape[1]


def mean_of_busiest(paid: Tensor, count: int | None = None) -> Tensor:
    """The mean over the `count` heads that pay most in total: (…, heads, tokens) -> (…, tokens).

    None means half of the heads, rounded up. Of three heads that pay 0.3, 0.1 and 0.4, the first and the last count.
    Ties go to the lower index.
    """
    heads = paid.shape[-2]
    order = paid.sum(dim=-1).sort(dim=-1, descending=True, stable=True).indices
    busiest = order[..., : (heads + 1) // 2 if count is None else count].sort(dim=-1).values
    return take_along(paid, busiest[..., None], dim=-2).mean(dim=-2)


def nearness(rows: Tensor, tokens: Tensor) -> Tensor:
    """The factor by which RoPE weakens attention with distance: 1 at the same position, smaller farther away.

    It is the product of two vectors of ones, rotated to both positions, divided by that product at equal positions. It
    is at least `LEAST_NEARNESS`.

    Args:
        rows: Vectors of ones rotated to the positions of rows, (…, rows, head size) float32.
        tokens: Vectors of ones rotated to the positions of tokens, (…, tokens, head size).

    Returns:
        (…, rows, tokens) float32.
    """
    at_one_position = rows.square().sum(dim=-1, keepdim=True)
    return (rows @ tokens.mT / at_one_position).clamp(min=LEAST_NEARNESS)
