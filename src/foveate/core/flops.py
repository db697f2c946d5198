"""Floating-point operations of the pieces transformers are made of. A multiply-add counts two.

Only matrix products count, as in torch's `FlopCounterMode`: norms, activations, softmax, rotary embeddings and
residual sums are left out.
"""

from itertools import pairwise


def linear(rows: int, *widths: int) -> int:
    """FLOPs of linear layers one after the other, from the first width to the last, on `rows` rows."""
    return sum(2 * rows * inputs * outputs for inputs, outputs in pairwise(widths))


def attention(queries: int, keys: int, width: int) -> int:
    """FLOPs of scores and weighted values over all pairs (nothing halved); `width` = heads · head_dim."""
    return 4 * queries * keys * width


def vit_block(tokens: int, width: int, inner: int) -> int:
    """FLOPs of a vision transformer's block on one sequence: q, k, v, output, attention, two-layer MLP."""
    projections = 4 * linear(tokens, width, width)  # query, key, value, output
    mlp = linear(tokens, width, inner, width)
    return projections + attention(tokens, tokens, width) + mlp
