"""Models of transformers that no family can serve, and why."""

__all__ = ["UNSERVED"]

_CROSS = "its layers read pictures by cross-attention, so the prompt has no vision tokens to drop"
_QUERIES = "its Q-Former makes 32 tokens of a picture before the decoder, an OPT or T5 without rotary positions"

UNSERVED = {
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip-2": _QUERIES,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": "a resampler makes 64 tokens of a picture, and its decoder has no rotary positions",
    "kosmos-2.5": "a resampler makes 2048 tokens of any picture, and its decoder has no rotary positions",
    "git": "its decoder is a BERT with the picture in front of the prompt, without placeholders or rotary positions",
    "gemma3n": (
        "its layers run four streams side by side, get inputs of their own for each token, and the last ones reuse the "
        "keys of earlier ones"
    ),
    "llama4": "its layers take one table of complex rotary factors in the place of cos and sin",
}
"""Reasons by `model_type`."""
