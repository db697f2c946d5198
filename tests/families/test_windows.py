"""What sliding windows count, on every kind of decoder that has them: the columns of tokens, or their new numbers.

With positions kept, the reference is the untouched model with hidden columns; with new numbers, a prompt of no more
tokens than those that stay, which the model's own code makes its masks for.
"""

from contextlib import contextmanager
from functools import cache

import pytest
import torch
import transformers

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.core.patching import Patcher
from foveate.registry import family_for
from tests import models, tiny_derived
from tests.derived.test_derived import CLOSE, Longest, Neighbours, apart, check_hidden, generate
from tests.families import llavas, qwens, test_gemma3, test_gemma4, test_paligemma
from tests.models import IMAGE, TEXT

WINDOW, STEPS = 6, 7
"""A window narrower than a picture, and steps until it has left the prompt."""
KINDS = ["sliding_attention", "full_attention"] * 3
MIXED = {"layer_types": KINDS, "sliding_window": WINDOW}
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 9}
DERIVED = (
    "aya_vision", "cohere2_vision", "cohere_compass", "dots3_note", "exaone4_5", "gemma4_unified",
    "gemma4_unified_shared", "lfm3_vl", "muse_glimmer", "muse_spark", "shieldgemma2", "step3p7",
)  # fmt: skip


def narrow(config):
    """A config with this window."""
    config.get_text_config().sliding_window = WINDOW
    return config


def qwen(config):
    text = config.get_text_config()
    text.use_sliding_window, text.sliding_window, text.layer_types = True, WINDOW, list(KINDS)
    return config


def of_qwen2():
    text = transformers.Qwen2Config(**TEXT, **MIXED, use_sliding_window=True)
    return llavas.clip("LlavaConfig", image_token_index=IMAGE, text_config=text)


OWN = {
    "gemma3": lambda: narrow(test_gemma3.config()),
    "gemma4": lambda: narrow(test_gemma4.config()),
    "llava": of_qwen2,
    "llava_next": lambda: llavas.next_(transformers.MistralConfig(**TEXT, sliding_window=WINDOW)),
    "paligemma": lambda: test_paligemma.config(transformers.Gemma2Config(**TEXT, **GEMMA, **MIXED)),
    "qwen2_vl": lambda: qwen(qwens.qwen2_vl()),
}
"""Families with hand-written parts, whose decoders may have a window."""
NAMES = [*OWN, *(name for name in DERIVED if tiny_derived.known(name))]


@cache
def tiny(name, attention="sdpa"):
    """A model, and what makes a batch of words for it."""
    if name in OWN:
        config = OWN[name]()
        config._attn_implementation = attention
        return models.made_of(name, config), lambda words: models.batch(name, words)
    model, case = tiny_derived.make(name, attention, WINDOW)
    return model, lambda words: case.batch(model, words)


def kernel_of(name, shift=0):
    """One of the two in turns; SDPA cannot cap logits as Gemma 2 does."""
    return "eager" if name == "paligemma" else ("sdpa", "eager")[(NAMES.index(name) + shift) % 2]


def pick(rows, stays):
    """Rows of a batch, (samples, columns), at the columns that stay, padded on the left."""
    parts = [row[own] for row, own in zip(rows, stays, strict=True)]
    longest = max(map(len, parts))
    return torch.stack([torch.cat((part.new_zeros(longest - len(part)), part)) for part in parts])


@contextmanager
def shortened(model, inputs, kept):
    """The inputs without the vision tokens of each sample that are not kept; the model encodes no others."""
    ids, core = inputs["input_ids"], tiny_derived.core(model)
    stays, vision, tokens, start = (ids != IMAGE) & (inputs["attention_mask"] != 0), ids == IMAGE, [], 0
    for own, row, places in zip(kept, stays, vision, strict=True):
        row[places.nonzero()[own, 0]] = True
        tokens.append(own + start)
        start += int(places.sum())

    def encode(original, *args, **kwargs):
        output = original(*args, **kwargs)
        pieces, whole = output.pooler_output, isinstance(output.pooler_output, torch.Tensor)
        left = torch.cat([piece.flatten(0, -2) for piece in ([pieces] if whole else pieces)])[torch.cat(tokens)]
        output.pooler_output = left[None] if whole else [left]
        return output

    is_row = {name: isinstance(value, torch.Tensor) and value.shape == ids.shape for name, value in inputs.items()}
    with Patcher() as patches:
        patches.wrap(core, "get_image_features", encode)
        yield {name: pick(value, stays) if is_row[name] else value for name, value in inputs.items()}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "paligemma"])  # recomputed in test_masks.py
def test_with_kept_positions_windows_count_columns_of_the_whole_prompt(name):
    model, batch = tiny(name, kernel_of(name))
    method = (Longest(), Neighbours())[NAMES.index(name) // 2 % 2]
    check_hidden(model, batch(["tit"]), method, STEPS)
    words = ["tit", "ttit"]
    with fv.drop(model, method):
        together = generate(model, batch(words)).logits
        alone = [generate(model, batch([word])).logits for word in words]
    for rows, *singles in zip(together, *alone, strict=True):
        assert apart(rows, torch.cat(singles)) < CLOSE


@pytest.mark.parametrize("words", [["tit"], ["tit", "ttit"]], ids=" ".join)
@pytest.mark.parametrize("name", NAMES)
def test_with_new_numbers_windows_count_as_in_a_shorter_prompt(name, words):
    model, batch = tiny(name, kernel_of(name, len(words)))
    if not family_for(model).renumbers:
        pytest.skip("it keeps positions")
    inputs = batch(words)
    with fv.drop(model, fv.DivPrune(keep=0.4, positions="reindex")) as trace:
        got = generate(model, inputs, STEPS)
    with shortened(model, inputs, trace.stages[0].kept) as short:
        assert short["input_ids"].shape[1] < inputs["input_ids"].shape[1]
        wanted = generate(model, short, STEPS)
    assert apart(torch.cat(got.logits), torch.cat(wanted.logits)) < CLOSE
