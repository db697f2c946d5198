"""The most bytes that live at once in one prefill, moment by moment."""

from collections.abc import Sequence

from foveate.cost._decoder import Decoder

__all__ = ["peak"]


def peak(
    decoder: Decoder,
    span: int,
    rows: Sequence[int],
    beside: Sequence[int],
    pictures: tuple[int, int],
    itemsize: int,
) -> int | None:
    """Bytes of activations, keys and values at the worst moment of one sample's prefill.

    Args:
        decoder: Its shape.
        span: Rows of the prompt, vision tokens included.
        rows: Of these, those each layer processes.
        beside: Rows that live while each layer runs and are not of its making: what the method remembers, for one.
        pictures: Bytes of the pictures, at the most while they are encoded and from then on.
        itemsize: Bytes of a number.

    Returns:
        None if it is not known of this decoder, or if the prompt does not fit into a layer's window.
    """
    if decoder.inner is None or any(window is not None and window <= span for window in decoder.windows):
        return None
    width = decoder.width
    queries = decoder.heads * decoder.head_dim
    keys = decoder.kv_heads * decoder.head_dim
    attention = width + max(4 * queries + 2 * keys, 2 * queries + 5 * keys)  # normed; RoPE on queries, then on keys
    mlp = 2 * width + 3 * decoder.inner  # residual and normed; activated, up and their product
    tables = 2 * decoder.head_dim  # cos and sin, made anew when rows leave
    stream = span * width
    held = stream + span * tables  # what goes into the decoder outlives its layers
    most, before = 0, span
    for layer, count in enumerate(rows):
        if count != before:
            held += count * tables
        before = count
        here = held + beside[layer] * width
        if layer > 0:
            here += stream
        if count < span:
            here += count * width  # gathered from the stream
        cached = decoder.cached(count)
        held += cached
        most = max(most, here + count * attention, here + cached + count * mlp)
    encoding, kept = pictures
    last_norm = (held + stream) * itemsize + 2 * stream * 4  # in float32, of all columns
    return max(encoding, kept + most * itemsize, kept + last_norm)
