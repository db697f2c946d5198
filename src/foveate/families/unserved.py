"""Models of transformers that no family can serve, and why."""

_CROSS = "its layers read pictures by cross-attention, so the prompt has no vision tokens to drop"
_ENCODER_DECODER = "it is an encoder-decoder: its decoder has no vision tokens to drop"
_QUERIES = "its Q-Former reduces a picture to 32 tokens before the decoder, an OPT or T5 without rotary positions"

UNSERVED = {
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip": "its text decoder reads the picture by cross-attention, so the prompt has no vision tokens to drop",
    "evolla": "it reads a protein's residues by cross-attention, and no picture",
    "pi0": "it is a robot's policy: experts read the cache of a PaliGemma, and nothing is generated",
    "diffusion_gemma": (
        "its answers are blocks that a second stack denoises, which reads every layer's cache at full length"
    ),
    "florence2": _ENCODER_DECODER,
    "pix2struct": _ENCODER_DECODER,
    "pp_formulanet": _ENCODER_DECODER,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
    "blip-2": _QUERIES,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": "a resampler reduces a picture to 64 tokens, and its decoder has no rotary positions",
    "kosmos-2.5": "a resampler makes 2048 tokens from any picture, and its decoder has no rotary positions",
    "git": "its decoder is a BERT with the picture before the prompt, without placeholders or rotary positions",
}
"""Reasons by `model_type`."""
