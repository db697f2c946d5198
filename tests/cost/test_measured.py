"""Decoders that no family has formulas for: what is measured without weights, against what runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.cost import _measured
from foveate.registry import family_for
from tests.tiny_derived import known, make

NAMES = (
    "glm_ocr", "kimi_k25", "cohere2_vision", "lfm2_vl", "muse_spark", "exaone4_5", "llama4", "minimax_m3_vl",
    "aria", "gemma4_unified", "chameleon", "phi4_multimodal", "ovis2", "qwen3_omni_moe_thinker",
)  # fmt: skip
"""Among them: mixtures, windows, parallel blocks, MLA, convolutions in the place of attention, formulas of a type."""
METHOD = fv.Uniform(layers=(1, 3), keep=(0.5, 0.3))


def of_layers(counter, family):
    """FLOPs of each decoder layer, without convolutions."""
    names = {module: name for name, module in family.model.named_modules()}
    counts = counter.get_flop_counts()
    kind = type(family.model).__name__
    return [
        sum(n for op, n in counts.get(f"{kind}.{names[layer]}", {}).items() if "conv" not in str(op))
        for layer in family.layers
    ]


@pytest.mark.parametrize("name", [name for name in NAMES if known(name)])
@pytest.mark.further
def test_the_engine_runs_what_was_measured(name):
    model, case = make(name, "eager")
    model.set_experts_implementation("batched_mm")  # which the counter knows
    inputs, family = case.batch(model, ["tit" if case.one else "titit"]), family_for(model)
    with torch.no_grad(), fv.drop(model, METHOD) as trace:
        with FlopCounterMode(display=False) as counter:
            cache = cache_in(model(**inputs, use_cache=True))
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers if hasattr(layer, "keys"))
        step = {"input_ids": torch.tensor([[5]])}
        if "mm_token_type_ids" in inputs:
            step["mm_token_type_ids"] = torch.tensor([[0]], dtype=inputs["mm_token_type_ids"].dtype)
        with FlopCounterMode(display=False) as after:
            model(**step, **with_cache(cache), use_cache=True)
    sizes = [media.length for media in trace.history[0].media[0]]
    costs = fv.cost(
        model,
        text_tokens=inputs["input_ids"].shape[1] - sum(sizes),
        vision_tokens=sizes,
        method=METHOD,
        dtype=torch.float32,
    )
    assert of_layers(counter, family) == list(costs.layer_flops)
    assert [lengths[0] for lengths in trace.history[0].kv_lengths] == list(costs.kv_lengths)
    assert held == costs.kv_bytes
    assert costs.decode_flops == sum(of_layers(after, family)) + costs.head_flops
    assert costs.prefill_flops < fv.cost(model, text_tokens=9, vision_tokens=sizes).prefill_flops
    assert costs.tower_flops is None is costs.total_flops
    assert "total not counted" in repr(costs)


def test_a_config_is_measured_once(monkeypatch):
    model, _ = make("glm_ocr")
    first = _measured.measure(model.config)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_config", None)
    assert _measured.measure(type(model.config).from_dict(model.config.to_dict())) is first


REFUSED = {
    "nemotron_h_omni": "NemotronHBlock are not a fixed number",  # its state runs over whole chunks of rows
    "gemma4_unified_shared": "layers attend to keys of earlier layers",
    "ernie4_5_vl_moe": "whether its .* runs depends on the row",  # experts for vision tokens
    "dots3_note": "its layers cache an index in addition to keys",
    "step3p7": "is not known: ",
}


@pytest.mark.parametrize("name", [name for name in REFUSED if known(name)])
def test_what_is_not_so_many_products_a_row_and_a_pair_is_refused(name):
    model, _ = make(name)
    with pytest.raises(fv.UnsupportedError, match=REFUSED[name]):
        fv.cost(model, text_tokens=9, vision_tokens=12)
