"""Tiny random models of every family, and mixed batches for them."""

import importlib
import inspect
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import foveate as fv
from foveate._transformers import older
from foveate.families.qwen_vl import Qwen2VL
from tests import oracle
from tests.families import llavas, qwens
from tests.tiny import DEPTH, IMAGE, PAD, TEXT, VIDEO, VOCABULARY, Picture, Tiny

__all__ = [
    "DEPTH", "ENCODES_FIRST", "FAMILIES", "IMAGE", "MIXED", "NO_PLACEHOLDERS", "OTHERS", "PAD", "PROMPTS", "QWENS",
    "TEXT", "TINY", "VIDEO", "VOCABULARY", "batch", "cached", "config_of", "features", "generate", "given",
    "is_vision", "made_of", "mixed", "sample", "slots", "tiny", "with_video",
]  # fmt: skip

ENCODES_FIRST = "mm_encoder_outputs" in inspect.signature(transformers.LlavaForConditionalGeneration.forward).parameters
"""Whether `generate` encodes pictures before the decoder runs; transformers 5.16 does not."""

TINY: dict[str, Tiny] = llavas.TINY | qwens.TINY
OTHERS: dict[str, Tiny] = llavas.OTHER | qwens.OTHER
"""Of families another tiny model: other depths, heads and widths, towers, windows, experts and token ids."""
for name in sorted(fv.families().keys() - TINY.keys()):
    home = importlib.import_module(f"tests.families.test_{name}")
    TINY[name] = home.TINY
    if hasattr(home, "OTHER"):
        OTHERS[name] = home.OTHER
FAMILIES = sorted(name for name in TINY if not older(transformers.__version__, fv.families()[name].oldest))
"""All of them; of these an older transformers serves those whose models it has, and refuses the others."""
QWENS = [family for family in FAMILIES if issubclass(fv.families()[family], Qwen2VL)]
"""Families whose tower takes patches of pictures of any size."""


def with_video(family: str) -> str:
    """A prompt with a video and a picture; with two videos where these cannot be together."""
    return "tvtvt" if TINY[family].apart else "titvt"


PROMPTS = [
    (family, word)
    for family in FAMILIES
    for word in ("titit", with_video(family))
    if "v" not in word or TINY[family].videos
]
"""Two pictures for every family; a picture and a video for those that know video."""


@cache
def config_of(family: str) -> Any:
    """A family's tiny config, to be read only: making one takes some 3 ms, and 5,000 are asked for."""
    return TINY[family].config()


@cache
def tiny(family: str, attention: str = "sdpa") -> Any:
    """A tiny random model, its weights the same for every attention."""
    config = TINY[family].config()
    config._attn_implementation = attention if attention in ("sdpa", "eager") else "sdpa"
    if attention == "eager":
        config._experts_implementation = "eager"
    model = made_of(family, config)
    model.config.get_text_config()._attn_implementation = attention  # a name of our own passes no validation
    return model


def made_of(family: str, config: Any) -> Any:
    """A random model of this config."""
    if older(transformers.__version__, oldest := fv.families()[family].oldest):
        pytest.skip(f"{family} needs transformers {oldest}")
    torch.manual_seed(0)
    model = getattr(transformers, TINY[family].kind)(config).eval()
    with torch.no_grad():  # zeros and unit norms would hide wrong gathers
        for weight in model.parameters():
            if weight.dim() == 1 or not weight.any():
                weight.add_(0.1 * torch.randn_like(weight))
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):  # states that fade at once would hide what is in them
                weight.sub_(4)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def batch(family: str, samples: Sequence[str], seed: int = 0, *, start: bool = True) -> dict[str, Any]:
    """A left-padded batch.

    Args:
        family: Which model it is for.
        samples: A word a sample, a letter a piece: "t" is three text tokens, "i" an image, "v" a video.
        seed: Which texts and pictures. A sample has the same ones alone and in any batch.
        start: Whether a token of text stands before each word.
    """
    rows, pictures = [], []
    for word in samples:
        pieces, media = sample(family, word, seed)
        rows.append(torch.cat(pieces if start else pieces[1:]))
        pictures.extend(media)
    longest = max(len(row) for row in rows)
    ids = torch.stack([torch.cat((row.new_full((longest - len(row),), PAD), row)) for row in rows])
    mask = torch.stack([(torch.arange(longest) >= longest - len(row)).long() for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    for name in dict.fromkeys(name for picture in pictures for name in picture):
        inputs[name] = torch.cat([picture[name] for picture in pictures if name in picture])
    inputs |= TINY[family].extra(ids)
    return inputs


@cache
def sample(family: str, word: str, seed: int = 0) -> tuple[list[Tensor], list[Picture]]:
    """What `batch` makes of a word: ids of its start and of every letter, and its pictures and videos in order."""
    rng = torch.Generator().manual_seed(1000 * seed + sum(map(ord, word)) + len(word))
    known = TINY[family]
    makers = {"i": known.pictures, "v": known.videos}
    pieces_of = {at: make(config_of(family), word.count(at), rng) for at, make in makers.items() if at in word and make}
    pieces, pictures = [torch.tensor([1])], []
    left = {letter: iter(of_kind) for letter, of_kind in pieces_of.items()}
    for letter in word:
        if letter in left:
            picture = next(left[letter])
            modality = "video" if any("video" in name for name in picture) else "image"
            pieces.append(known.ids(picture, sum(map(len, features(tiny(family), picture, modality)))))
            pictures.append(picture)
        else:
            pieces.append(torch.randint(2, 90, (3,), generator=rng))
    return pieces, pictures


def given(model: Any, inputs: dict[str, Any], modality: str = "image") -> dict[str, Any]:
    """Of a model's inputs those that its `get_*_features` takes; empty where there are no pictures (or videos)."""
    return oracle.features_given(model.model, inputs, modality)


def features(model: Any, inputs: dict[str, Any], modality: str = "image") -> list[Tensor]:
    """The features of each picture (or video), (tokens, width) each; of all together where no prompt is given."""
    of = given(model, inputs, modality)
    with torch.no_grad():
        output = getattr(model.model, f"get_{modality}_features")(**of)
    whole = oracle.features_of(model.model, output, of, modality)
    if "input_ids" in inputs:
        return oracle.by_picture(model, whole, is_vision(inputs["input_ids"][0]))
    return [torch.cat([one.flatten(0, -2) for one in whole])]


def cuts_of(output: Any) -> list[Any]:
    """What became of each image in the tower, by the tag on what a `get_*_features` call answered; None: nothing."""
    return [image.cut for sample in output._foveate.media for image in sample]


def cached(layer: Any) -> list[Tensor]:
    """What a layer of a cache holds: keys and values, or the states it has in their place."""
    if hasattr(layer, "keys"):
        return [layer.keys, layer.values]
    return [*layer.conv_states.values(), *layer.recurrent_states.values()]


def slots(past: Any) -> list[int]:
    """Rows in each layer of a cache; 0 where it holds a state."""
    return [layer.keys.shape[-2] if hasattr(layer, "keys") else 0 for layer in past.layers]


def always_kept(family: str, size: int) -> Sequence[int]:
    """The tokens of an image or video of `size` tokens that always stay, such as a frame's CLS."""
    kind = fv.families()[family]
    (picture,) = kind.pictures(tiny(family).config, "image", {}, [size])
    return picture.beside if kind.keeps_beside else ()


def is_vision(ids: Tensor) -> Tensor:
    """Which ids stand for vision tokens."""
    return (ids == IMAGE) | (ids == VIDEO)


MIXED = ("titt", "titit", "ttttt", "tit")


def mixed(family: str) -> tuple[str, ...]:
    """Samples for a batch: one, two and no pictures; and videos, where the family knows them."""
    return (*MIXED, "tvt", "titvt") if TINY[family].videos and not TINY[family].apart else MIXED


NO_PLACEHOLDERS = {"bad_words_ids": [[IMAGE], [VIDEO], [93], [94]]}  # a random model would draw them


def generate(model: Any, inputs: dict[str, Any], new_tokens: int = 4, **settings: Any) -> Any:
    """Greedy tokens and logits without placeholders among the new ones."""
    settings = {"do_sample": False, "max_new_tokens": new_tokens, **NO_PLACEHOLDERS, **settings}
    return model.generate(**inputs, **settings, return_dict_in_generate=True, output_logits=True)
