"""Decoders in which a row sees more than what is before it, or less: prefixes, windows and capped logits."""

import functools

import pytest
import torch
import transformers

import foveate as fv
from tests import oracle
from tests.families import llavas, test_paligemma as paligemma
from tests.families.shown import paid, ways
from tests.invariants.references import check_recomputed, reference
from tests.invariants.settings import EXAMPLES
from tests.models import ENCODES_FIRST, IMAGE, TEXT, batch, made_of, tiny

CLOSE = {"atol": 5e-5, "rtol": 1e-4}
WINDOW = 20
KINDS = ("sliding_attention", "full_attention") * 3
NAMES = [name for name in EXAMPLES if name.rsplit("-", 1)[0] in ("v2drop", "visiondrop", "mustdrop", "averagepool")]


def window_of(layer, columns, picture, prompt, counts):
    """Mistral: every layer sees itself and the columns just before it."""
    row, key = columns[:, None], columns
    return (key <= row) & (counts[:, None] - counts < WINDOW)


def prefix_and_window(layer, columns, picture, prompt, counts):
    """PaliGemma 2: all of the prompt; behind it a window in every second layer."""
    row, key = columns[:, None], columns
    near = (counts[:, None] - counts < WINDOW) | (KINDS[layer] != "sliding_attention")
    return ((row < prompt) & (key < prompt)) | ((key <= row) & near)


@functools.cache
def model_of(family):
    if family == "llava_next":
        config = llavas.next_(transformers.MistralConfig(**TEXT, sliding_window=WINDOW))
        return made_of(family, config), window_of
    text = transformers.Gemma2Config(
        **TEXT, head_dim=12, query_pre_attn_scalar=9, sliding_window=WINDOW, layer_types=list(KINDS),
        attn_logit_softcapping=1.5,
        final_logit_softcapping=4.0 if ENCODES_FIRST else None,  # transformers 5.16 forgets it
    )  # fmt: skip
    config = paligemma.config(text)
    config._attn_implementation = "eager"  # SDPA cannot cap
    return made_of(family, config), prefix_and_window


WINDOWED = pytest.mark.parametrize("family", ["llava_next", "paligemma"])


@WINDOWED
@pytest.mark.parametrize("name", NAMES)
def test_cached_generation_with_windows_is_the_recompute(name, family):
    (model, sees), inputs = model_of(family), batch(family, ["titit"])
    assert inputs["input_ids"].shape[1] > WINDOW
    check_recomputed(model, family, EXAMPLES[name], inputs, new_tokens=8, sees=sees, **CLOSE)


@WINDOWED
@pytest.mark.parametrize("layer", [1, 2])
def test_scores_are_the_models_own_attention_with_windows_prefixes_and_caps(family, layer):
    model, _ = model_of(family)
    inputs = batch(family, ["ttit"])
    seen = {rows: paid(model, inputs, layer, rows) for rows in ("vision", "after")}
    real = model.config.get_text_config()._attn_implementation
    model.config.get_text_config()._attn_implementation = "eager"
    try:
        with torch.no_grad():
            attention = model(**inputs, output_attentions=True).attentions[layer][0].mean(dim=0)
    finally:
        model.config.get_text_config()._attn_implementation = real
    vision = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    torch.testing.assert_close(seen["vision"], ways(attention[vision][:, vision]), atol=1e-6, rtol=1e-5)
    after = torch.arange(int(vision[-1]) + 1, len(attention))
    torch.testing.assert_close(seen["after"], ways(attention[after][:, vision]), atol=1e-6, rtol=1e-5)
    if family == "paligemma":
        assert (attention[vision[0], vision[1:]] > 0).all()  # patches see later ones


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["v2drop-0", "visiondrop-0", "visiondrop-2"])
def test_a_suffix_to_train_on_is_causal(name, attention):
    """token_type_ids of 1 behind the prompt: the prompt does not see it."""
    model, inputs, method = tiny("paligemma", attention), batch("paligemma", ["titt"]), EXAMPLES[name]
    inputs["token_type_ids"][:, -2:] = 1

    def sees(layer, columns, picture, prompt, counts):
        return paligemma.sees(layer, columns, picture, prompt - 2)

    with fv.drop(model, method) as trace, torch.no_grad():
        got = model(**inputs).logits[0, -1]
    told = reference(method, "paligemma", model, inputs, trace)
    with torch.no_grad():
        logits, _ = oracle.forward(model, inputs, torch.tensor([], dtype=torch.long), sees=sees, **told)
        prefix, _ = oracle.forward(model, inputs, torch.tensor([], dtype=torch.long), **told)
    torch.testing.assert_close(got, logits[0], **CLOSE)
    assert (got - prefix[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["v2drop-0", "visiondrop-0", "mustdrop-0"])
def test_a_prompt_without_types_is_seen_both_ways_by_a_kernel_without_a_mask(name):
    """transformers gives SDPA none then, and Gemma's layers here are not causal."""
    inputs = batch("paligemma", ["titit"])
    del inputs["token_type_ids"]
    check_recomputed(tiny("paligemma"), "paligemma", EXAMPLES[name], inputs, **CLOSE)
