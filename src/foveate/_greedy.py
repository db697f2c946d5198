"""Greedy decoding, whatever a checkpoint's own generation settings say."""

from typing import Any

import torch

__all__ = ["generate"]


def generate(model: Any, inputs: Any, new_tokens: int, *, exactly: bool = False, streamer: Any = None) -> Any:
    """What `model.generate` answers as a dict, its sequences and cache among it.

    Args:
        model: A model of transformers.
        inputs: What it is given, by name.
        new_tokens: At the most.
        exactly: Whether no end of sequence comes before.
        streamer: Gets every token as it comes.
    """
    with torch.inference_mode():
        return model.generate(
            **inputs,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens if exactly else None,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            streamer=streamer,
            return_dict_in_generate=True,
        )
