"""The layers alone on fewer rows: their own numbers and FLOPs, hooks that come off, and what cannot be sliced."""

import pytest
import torch

import foveate as fv
from foveate.bench.bare import bare, obstacle
from foveate.bench.stopwatch import time_parts
from foveate.registry import family_for
from tests.bench.counting import Flops
from tests.families.test_decoders import ministral
from tests.models import DEPTH, ENCODES_FIRST, FAMILIES, batch, tiny

COUNTS = (25, 25, 14, 14, 6, 0)  # vision tokens of each layer
OBSTACLES = {
    "gemma4": "does not know what layers",
    "qwen3_5": "carry a state",
    "qwen3_5_moe": "carry a state",
    "qwen3_vl": "adds tower features",
    "qwen3_vl_moe": "adds tower features",
}


def rows_of(inputs):
    """Rows of each layer, and how many of them the arithmetic is told are text."""
    text = inputs["input_ids"].shape[1] - COUNTS[0]
    return tuple(text + count for count in COUNTS), text


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_compute_what_the_arithmetic_says_or_are_left_alone(family):
    model, inputs = tiny(family, "eager"), batch(family, ("titit",))
    known = family_for(model)
    said = obstacle(known, inputs)
    if family in OBSTACLES:
        assert OBSTACLES[family] in said
        return
    assert said == ""
    rows, text = rows_of(inputs)
    with Flops() as flops, bare(known, rows):
        times = time_parts(model, inputs, 1, lambda: flops.total)
    cost = fv.cost(model, text_tokens=text, vision_tokens=COUNTS[0], tokens=COUNTS, tower_images=1, grids=[[(5, 5)]])
    assert times["prefill"] == cost.prefill_flops


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_each_layer_runs_on_the_last_rows_at_their_own_positions(family, attention):
    check_numbers(tiny(family, attention), tiny(family), batch(family, ("titit", "titit")))


@pytest.mark.skipif(not ENCODES_FIRST, reason="of older versions only the usual decoders are tested")
def test_layers_that_scale_queries_by_position_are_given_positions():
    check_numbers(ministral(8), ministral(8), batch("mistral3", ("titit", "titit")))


def check_numbers(model, plain, inputs):
    """Against a loop over the layers of `plain`, the same model with SDPA, which looks back alone without a mask."""
    arguments = {}
    known, (rows, _) = family_for(model), rows_of(inputs)
    text = known.text
    watch = text.register_forward_pre_hook(lambda module, args, kwargs: arguments.update(kwargs), with_kwargs=True)
    try:
        with torch.no_grad(), bare(known, rows):
            expected = model.model(**inputs, use_cache=False).last_hidden_state
    finally:
        watch.remove()
    hidden, ids = arguments["inputs_embeds"], arguments["position_ids"]
    ids = torch.arange(hidden.shape[1])[None] if ids is None else ids
    both_ways = model.config.model_type == "gemma3"  # its pictures
    with torch.no_grad():
        for index, (layer, count) in enumerate(zip(family_for(plain).layers, rows, strict=True)):
            mask = arguments["attention_mask"]
            mask = mask[text.config.layer_types[index]][..., -count:, -count:] if both_ways else None
            places = ids[..., -count:] if ids.dim() < 3 else ids[-3:, :, -count:]
            pair = known.rotary(index, hidden, places)
            asked = {"attention_mask": mask, "position_embeddings": pair, "position_ids": places}
            hidden = layer(hidden[:, -count:], **asked)
        torch.testing.assert_close(expected, text.norm(hidden), atol=1e-5, rtol=1e-5)


def test_hooks_come_off_whatever_happens():
    model, inputs = tiny("llava"), batch("llava", ("tit",))
    known, seen = family_for(model), []

    def stop(layer, _):
        seen.append(len(layer._forward_pre_hooks))
        raise KeyboardInterrupt

    foreign = known.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt), bare(known, (3,) * DEPTH):
        model(**inputs)
    assert seen == [2]
    foreign.remove()
    assert not any(layer._forward_pre_hooks for layer in known.layers)
