"""Tiny random models of every family, and mixed batches for them."""

import importlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

import foveate as fv
from tests.tiny import DEPTH, IMAGE, PAD, TEXT, VIDEO, VOCABULARY, Picture, Tiny

__all__ = [
    "DEPTH", "FAMILIES", "IMAGE", "MIXED", "NO_PLACEHOLDERS", "PAD", "TEXT", "TINY", "VIDEO", "VOCABULARY",
    "batch", "generate", "made_of", "tiny",
]  # fmt: skip

TINY: dict[str, Tiny] = {name: importlib.import_module(f"tests.families.test_{name}").TINY for name in fv.families()}
FAMILIES = sorted(TINY)


@cache
def tiny(family: str, attention: str = "sdpa") -> Any:
    """A tiny random model, its weights the same for every attention."""
    config = TINY[family].config()
    config._attn_implementation = attention if attention in ("sdpa", "eager") else "sdpa"
    model = made_of(family, config)
    model.config.get_text_config()._attn_implementation = attention  # a name of our own passes no validation
    return model


def made_of(family: str, config: Any) -> Any:
    """A random model of this config."""
    torch.manual_seed(0)
    model = getattr(transformers, TINY[family].kind)(config).eval()
    with torch.no_grad():  # zero biases and unit norms would hide wrong gathers
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def batch(family: str, samples: Sequence[str], seed: int = 0, *, start: bool = True) -> dict[str, Any]:
    """A left-padded batch.

    Args:
        family: Which model it is for.
        samples: A word a sample, a letter a piece: "t" is three text tokens, "i" an image.
        seed: Which texts and pictures. A sample has the same ones alone and in any batch.
        start: Whether a token of text stands before each word.
    """
    rows, pictures = [], []
    for word in samples:
        row, found = _sample(family, word, seed, start)
        rows.append(row)
        pictures.extend(found)
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((row.new_full((longest - len(row),), PAD), row)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name in pictures[0] if pictures else ():
        inputs[name] = torch.cat([picture[name] for picture in pictures])
    inputs |= TINY[family].extra(ids)
    return inputs


@cache
def _sample(family: str, word: str, seed: int, start: bool) -> tuple[Tensor, list[Picture]]:
    rng = torch.Generator().manual_seed(1000 * seed + sum(map(ord, word)) + len(word))
    model, known = tiny(family), TINY[family]
    pictures = known.pictures(known.config(), word.count("i"), rng) if "i" in word else []
    pieces, left = [torch.tensor([1])] * start, iter(pictures)
    for letter in word:
        if letter == "i":
            picture = next(left)
            with torch.no_grad():
                length = sum(len(one) for one in model.model.get_image_features(**picture).pooler_output)
            pieces.append(known.ids(picture, length))
        else:
            pieces.append(torch.randint(2, 90, (3,), generator=rng))
    return torch.cat(pieces), pictures


MIXED = ("titt", "titit", "ttttt", "tit")
NO_PLACEHOLDERS = {"bad_words_ids": [[IMAGE], [VIDEO], [93], [94]]}  # a random model would draw them


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = 6, **settings: Any) -> Any:
    """Greedy tokens and logits without placeholders among the new ones."""
    settings = {"do_sample": False, "max_new_tokens": new_tokens, **NO_PLACEHOLDERS, **settings}
    return model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
