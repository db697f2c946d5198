"""Many questions about one picture: its prefill is run once, and its cache repeated for every question."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from foveate.ask.batch import pad_id
from foveate.ask.prompt import is_vision
from foveate.methods.base import Method
from foveate.methods.follow import reads_text
from foveate.methods.stages import Shape
from foveate.registry import family_for

__all__ = ["can_share", "shared_inputs"]


def can_share(model: Any, method: Method | None) -> bool:
    """Whether many questions about one picture may share its prefill.

    Its family must say that the question changes nothing before it, and no text may decide what is dropped. Padding
    stands between the picture and a short question, so positions must be plain and no layer may have a window: windows
    count columns.
    """
    family = family_for(model)
    if method is not None and reads_text(method.stages(Shape(len(family.layers)))):
        return False
    if not (family.shares_prefix and family.renumbers):
        return False
    cache = DynamicCache(config=family.text.config)  # transformers' own choice of layers for its config
    return not any(getattr(layer, "is_sliding", False) for layer in cache.layers)


def shared_inputs(model: Any, samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """What `generate` is given for prompts that begin with the same one picture, after running its prefill.

    What follows a picture cannot change its rows in a causal decoder.

    Args:
        model: One that `can_share`.
        samples: What the processor made of each prompt, batch 1, on the model's device; equal up to the last vision
            token.
    """
    prompts = [sample["input_ids"][0] for sample in samples]
    vision = is_vision(model.config, prompts[0])
    shared = _begin_alike(prompts, int(vision.nonzero()[-1]) + 1)
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id(model), device=model.device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # the padding stands between the picture and the question
        start = longest - (len(prompt) - shared)
        ids[row, :shared], ids[row, start:] = prompt[:shared], prompt[shared:]
        mask[row, :shared], mask[row, start:] = 1, 1
    text = samples[0]["input_ids"].shape
    pixels = {name: value for name, value in samples[0].items() if value.shape[:2] != text}
    with torch.inference_mode():
        begun = model(
            input_ids=ids[:1, :shared], attention_mask=mask[:1, :shared], **pixels, use_cache=True, logits_to_keep=1
        )
        begun.past_key_values.batch_repeat_interleave(len(prompts))
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": begun.past_key_values}


def _begin_alike(prompts: Sequence[Tensor], least: int) -> int:
    """How many tokens all prompts begin with; one stays for the call after.

    The picture alone, `least` tokens, is not enough where a tag behind it says that it has ended.
    """
    most = min(map(len, prompts)) - 1
    first = torch.stack([prompt[:most] for prompt in prompts])
    alike = (first == first[0]).all(dim=0)
    return max(least, int(alike.long().cumprod(dim=0).sum()))
