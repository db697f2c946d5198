"""`Products`: the model's own queries of the text and keys of the tokens, behind norms and before RoPE."""

import pytest
import torch

from foveate.contract import Products
from foveate.families.tap import tapped_layer
from tests.models import FAMILIES, TINY, batch, is_vision, tiny
from tests.signals import read

LAYER = 3
WAYS = (Products(), Products((0, 0)), Products((1, 2)))


def without_rope(model, inputs):
    """What layer 3 attends with where RoPE is that of position 0: (heads, rows, size) queries, and keys repeated."""
    layer, products = model.get_decoder().layers[LAYER], {}
    attention = layer.self_attn

    def flat(module, args, kwargs):
        cos, sin = kwargs["position_embeddings"]
        products["rows"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    hook = attention.register_forward_pre_hook(flat, with_kwargs=True)
    try:
        with tapped_layer(layer, lambda query, key, *_: products.update(queries=query, keys=key)), torch.no_grad():
            model(**inputs)
    finally:
        hook.remove()
    queries, keys = products["queries"][0].double(), products["keys"][0].double()
    return queries, keys.repeat_interleave(len(queries) // len(keys), dim=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if LAYER not in TINY[family].recurrent])
def test_it_is_made_of_the_models_own_queries_and_keys(family):
    """Of two images: the text behind the last asks, all but some rows at its ends; of few all."""
    model, inputs = tiny(family), batch(family, ["tititt"])
    (values,) = read(model, inputs, WAYS)
    queries, keys = without_rope(model, inputs)
    vision = is_vision(inputs["input_ids"][0])
    columns = vision.nonzero()[:, 0]
    behind = list(range(int(columns[-1]) + 1, len(vision)))
    asking = {WAYS[0]: behind[1:-5] or behind, WAYS[1]: behind, WAYS[2]: behind[1:-2]}
    assert len(behind) in (6, 7)  # 1 + 5 rows leave nobody, or one
    for signal, products in values.items():
        every = torch.stack([queries[:, row] for row in asking[signal]]).mean(dim=0)  # (heads, size)
        wanted = (keys[:, columns] * every[:, None]).sum(dim=-1).T / queries.shape[-1] ** 0.5
        assert products.dtype == torch.float32
        torch.testing.assert_close(products.double(), wanted[: len(products)], atol=2e-6, rtol=1e-4)


def test_without_text_behind_it_is_zero():
    (of_sample,) = read(tiny("llava"), batch("llava", ["ti"]), WAYS)
    assert all(not products.any() for products in of_sample.values())
