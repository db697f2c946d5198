"""What a method reads of a layer ahead of it is counted; the rest of its scoring is too little."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.bench.shapes import shape
from foveate.contract import Attention, Keys, LayerStage, Method
from tests.models import batch, tiny

SCHEDULE = {"dominant": 0, "contextual": 0, "layer_list": (2, 4), "image_token_list": ((4, 1), (2, 1))}
KEPT = SCHEDULE | {"image_token_list": ((25, 0), (25, 0)), "reference": 25}
TEXT = {("llava", "tit"): 7, ("llava", "titit"): 10, ("qwen2_5_vl", "tit"): 8, ("qwen2_5_vl", "titit"): 12}
TOKENS = {"llava": [25, 25], "qwen2_5_vl": [6, 9]}
GRIDS = {"llava": None, "qwen2_5_vl": [[(2, 3)], [(3, 3)]]}


class OfKeys(Method):
    """Reads the coming layer's keys alone, which are computed once for all images."""

    name = "of_keys"

    def stages(self, shape):
        return (LayerStage(2, reads=(Keys(),), keep=0.5, unit="image", score=lambda view: view.keys.sum(-1)),)


class Together(Method):
    """Ranks all images together."""

    name = "together"

    def stages(self, shape):
        paid = Attention(rows="last", layer="next")
        return (LayerStage(2, reads=(paid,), keep=0.5, score=lambda view: view.attention),)


def run(model, inputs, method):
    """FLOPs by torch's counter, and the rows that each layer's queries and keys were computed of."""
    projected = {"q_proj": [], "k_proj": []}
    hooks = []
    for layer in model.get_decoder().layers:
        for name, rows in projected.items():
            made = getattr(layer.self_attn, name)
            hooks.append(made.register_forward_hook(lambda _, args, out, rows=rows: rows.append(args[0].shape[-2])))
    with torch.no_grad(), fv.drop(model, method), FlopCounterMode(display=False) as counter:
        model(**inputs, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), projected


def priced(family, layout, **more):
    images = layout.count("i")
    known = {"text_tokens": TEXT[family, layout], "vision_tokens": TOKENS[family][:images]}
    if grids := GRIDS[family]:
        known["grids"] = grids[:images]
    return fv.cost(tiny(family), **known, **more)


def ahead(family, layout, method):
    """FLOPs of a cost beyond those of the same schedule."""
    cost = priced(family, layout, method=method)
    return cost.prefill_flops - priced(family, layout, tokens=cost.tokens).prefill_flops


@pytest.mark.parametrize("family", TOKENS)
@pytest.mark.parametrize(("layout", "queries"), [("tit", 100), ("titit", None), ("titit", 3)])
def test_visiondrop_is_counted_but_for_the_products_of_its_queries_and_keys(family, layout, queries):
    model, method = tiny(family, "eager"), fv.VisionDrop(**SCHEDULE, queries=queries)
    inputs = batch(family, [layout])
    counted, projected = run(model, inputs, method)
    cost = priced(family, layout, method=method)
    layer = model.get_decoder().layers[0].self_attn
    own = sum(cost.tokens) + len(cost.tokens) * cost.text_tokens
    beyond = {name: sum(rows) - own for name, rows in projected.items()}
    linear = {name: 2 * getattr(layer, name).weight.numel() * rows for name, rows in beyond.items()}
    assert ahead(family, layout, method) == sum(linear.values()) > 0
    keys = cost.tokens[1] + cost.text_tokens
    asking = [min(count, queries or count) for count in cost.vision_tokens]
    assert beyond == {"q_proj": sum(asking), "k_proj": len(asking) * keys}
    assert counted - cost.total_flops == 2 * sum(asking) * keys * layer.q_proj.out_features


@pytest.mark.parametrize("method", [OfKeys(), Together(), fv.PyramidDrop(retention=0.5), fv.HAWK()], ids=str)
def test_keys_that_are_read_ahead_are_counted_as_often_as_they_are_computed(method):
    family, layout = "qwen2_5_vl", "titit"
    model, inputs = tiny(family, "eager"), batch(family, [layout])
    _, projected = run(model, inputs, method)
    cost = priced(family, layout, method=method)
    beyond = sum(projected["k_proj"]) - sum(cost.tokens) - len(cost.tokens) * cost.text_tokens
    weight = model.get_decoder().layers[0].self_attn.k_proj.weight
    assert ahead(family, layout, method) == 2 * weight.numel() * beyond > 0


@pytest.mark.parametrize("method", [fv.FastV(), fv.V2Drop(), fv.DivPrune(), fv.VisionDrop(**KEPT)])
def test_what_reads_nothing_ahead_of_a_layer_or_drops_nothing_costs_no_more(method):
    assert ahead("llava", "tit", method) == 0


@pytest.mark.parametrize(("name", "share"), [("llava-1.5-7b", 0.0155), ("qwen2.5-vl-7b", 0.0064)])
def test_at_576_tokens_of_a_7b_model_visiondrops_products_are_under_a_thousandth_and_the_rest_is_not(name, share):
    config = shape(name).make_config()
    sizes = {"text_tokens": 40, "vision_tokens": 576, "grids": [[(24, 24)]]}
    cost = fv.cost(config, **sizes, method=fv.VisionDrop(retention=1 / 3))
    whole = fv.cost(config, **sizes)
    plain = fv.cost(config, **sizes, tokens=cost.tokens)
    width, cuts = config.get_text_config().hidden_size, zip(cost.tokens, cost.tokens[1:], strict=False)
    products = sum(2 * before * (before + 40) * width for before, after in cuts if after < before)
    pairs = 2 * 576**2 * width  # as many as a method that compares all tokens with one another multiplies
    assert max(products, pairs) < 0.001 * whole.prefill_flops
    assert products < 0.001 * cost.prefill_flops
    assert 1 - plain.prefill_flops / cost.prefill_flops == pytest.approx(share, abs=1e-4)


def test_scoring_flops_are_0_and_say_that_they_go():
    with pytest.warns(DeprecationWarning, match="scoring_flops"):
        assert priced("llava", "tit", method=fv.DivPrune()).scoring_flops == 0
    assert "scoring_flops" not in priced("llava", "tit").to_dict()
