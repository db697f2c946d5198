"""Decoders that a family's models may have beside the usual ones: layers without RoPE, norms in other places."""

import copy
import functools

import pytest
import torch
import transformers

import foveate as fv
from tests.families import test_mistral3 as mistral3
from tests.families.shown import paid, ways
from tests.invariants.references import check_recomputed
from tests.invariants.settings import EXAMPLES
from tests.invariants.test_backends import flash_like
from tests.models import ENCODES_FIRST, IMAGE, batch, made_of
from tests.tiny import CLIP, TEXT

pytestmark = pytest.mark.skipif(not ENCODES_FIRST, reason="of older versions only the usual decoders are tested")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
KINDS = ["sliding_attention", "full_attention"] * 3
TEXTS = {
    "no RoPE in some layers": lambda: transformers.SmolLM3Config(**TEXT, no_rope_layers=[1, 0] * 3),
    "no RoPE in global layers": lambda: transformers.Cohere2Config(**TEXT, sliding_window=200, layer_types=KINDS),
    "a norm behind RoPE": lambda: transformers.HunYuanDenseV1Config(**TEXT, head_dim=8),
    "RoPE on a part of a head": lambda: transformers.StableLmConfig(**TEXT),
    "one projection of all": lambda: transformers.Phi3Config(**TEXT, sliding_window=None),
    "a norm of the usual kind": lambda: transformers.GemmaConfig(**TEXT, head_dim=12),
    "norms behind": lambda: transformers.Olmo2Config(**TEXT),
}
UNKNOWN = {"a sink": lambda: transformers.GptOssConfig(**TEXT, head_dim=8, num_local_experts=4, layer_types=KINDS)}


@functools.cache
def llava(text, attention="sdpa"):
    config = transformers.LlavaConfig(
        text_config={**TEXTS, **UNKNOWN}[text](), vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE,
    )  # fmt: skip
    config._attn_implementation = attention
    return made_of("llava", config)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("text", TEXTS)
def test_scores_are_the_models_own_attention(text, layer):
    inputs = batch("llava", ["ttit"])
    seen = {rows: paid(llava(text), inputs, layer, rows) for rows in ("vision", "after")}
    with torch.no_grad():
        attention = llava(text, "eager")(**inputs, output_attentions=True).attentions[layer][0].mean(dim=0)
    vision = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    after = torch.arange(int(vision[-1]) + 1, len(attention))
    torch.testing.assert_close(seen["vision"], ways(attention[vision][:, vision]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["after"], ways(attention[after][:, vision]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("text", UNKNOWN)
def test_attention_of_an_unknown_kind_is_not_read(text):
    model, inputs = llava(text, "eager"), batch("llava", ["ttit"])
    with pytest.raises(fv.UnsupportedError, match="attends"):
        paid(model, inputs, 1, "vision")
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(0.5,))) as trace, torch.no_grad():
        model(**inputs)
    assert trace.stages[0].after == (12,)


@pytest.mark.parametrize("text", TEXTS)
def test_where_rope_may_be_left_out_distance_is_not_told(text):
    """SparseVLM reads the same words there, with what distance makes of their attention."""
    model, inputs = llava(text), batch("llava", ["titt"])
    wanted = r"does not know how \w+Attention applies RoPE.*Attention\(without_distance=True\).*such as SparseVLM"
    with pytest.raises(fv.UnsupportedError, match=wanted), fv.drop(model, EXAMPLES["sparsevlm_plus-0"]):
        model(**inputs)
    with fv.drop(model, EXAMPLES["sparsevlm-1"]) as trace, torch.no_grad():
        model(**inputs)
    assert trace.stages[0].after == (9,)


@functools.cache
def ministral(learnt):
    """Queries are scaled up every `learnt` positions."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": learnt,
        "llama_4_scaling_beta": 0.5, "beta_fast": 32.0, "beta_slow": 1.0,
    }  # fmt: skip
    config = mistral3.config()
    text = transformers.Ministral3Config(**TEXT, head_dim=8, rope_parameters=rope)
    return made_of("mistral3", transformers.Mistral3Config(**{**config.to_dict(), "text_config": text}))


@pytest.mark.parametrize(
    ("name", "learnt"),
    [("v2drop-0", 8), ("averagepool-0", 8), ("visiondrop-3", 8), ("visiondrop-0", 4096), ("mustdrop-0", 4096)],
)
def test_ministral_gets_the_positions_it_scales_queries_by(name, learnt):
    check_recomputed(ministral(learnt), "mistral3", EXAMPLES[name], batch("mistral3", ["titit"]))


def test_ministrals_scaled_queries_are_not_scored():
    with (
        fv.drop(ministral(8), EXAMPLES["visiondrop-0"]),
        torch.no_grad(),
        pytest.raises(fv.UnsupportedError, match="scales"),
    ):
        ministral(8)(**batch("mistral3", ["titit"]))


def test_ministrals_positions_are_refused_where_flash_attention_would_read_gaps_in_them():
    model = copy.deepcopy(ministral(8))
    model.config.get_text_config()._attn_implementation = flash_like.__name__
    refused = pytest.raises(fv.UnsupportedError, match="flash")
    with fv.drop(model, EXAMPLES["v2drop-0"]), torch.no_grad(), refused:
        model(**batch("mistral3", ["titit"]))
