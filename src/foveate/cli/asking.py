"""One question to one model, greedily, with or without dropping."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from foveate._greedy import generate
from foveate.cli.loading import Loaded
from foveate.engine.session import drop
from foveate.engine.trace import Trace
from foveate.methods.base import Method

__all__ = ["Answer", "ask"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said, and what it took.

    Attributes:
        text: The answer.
        tokens: Its token ids, the end of sequence included.
        kv_bytes: Bytes of keys and values the cache held at the end, measured.
        kv_bytes_whole: Bytes the same cache would hold had no layer dropped anything.
        trace: What left and where; empty without dropping.
    """

    text: str
    tokens: list[int]
    kv_bytes: int
    kv_bytes_whole: int
    trace: Trace


def ask(loaded: Loaded, inputs: Any, method: Method | None, max_new_tokens: int) -> Answer:
    """Answer the question in `inputs` (one sample), dropping with `method` if there is one."""
    prompt = inputs["input_ids"].shape[1]
    with nullcontext(Trace()) if method is None else drop(loaded.model, method) as trace:
        out = generate(loaded.model, inputs, max_new_tokens)
        held, whole = _kv_bytes(out.past_key_values, out.sequences.shape[1] - 1)
    tokens = out.sequences[0, prompt:].tolist()
    text = loaded.processor.decode(tokens, skip_special_tokens=True).strip()
    return Answer(text, tokens, held, whole, trace)


def _kv_bytes(cache: Any, positions: int) -> tuple[int, int]:
    """Bytes of keys and values in a cache, and what they would be with `positions` slots in every layer."""
    held = whole = 0
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            slot = part[:, :, :1].nbytes  # (samples, heads, slots, width)
            held += part.nbytes
            whole += slot * positions
    return held, whole
