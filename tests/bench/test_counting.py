"""The counter: FLOPs of known products, bytes of known tensors, operators by layer."""

import torch

import foveate as fv
from tests.bench.counting import Memory, count
from tests.memory import BEFORE, llava


def test_a_product_has_two_flops_a_multiply_add_and_attention_is_counted_on_a_cpu():
    matrix, heads = torch.ones(3, 5), torch.ones(1, 2, 7, 4)
    assert count(lambda: matrix @ matrix.T).flops == 2 * 3 * 5 * 3
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count(lambda: attend(heads, heads, heads, is_causal=True)).flops == 2 * (2 * 2 * 7 * 7 * 4)


def test_a_model_of_twice_the_layers_does_twice_the_layers_work():
    found = {}
    for layers in (8, 16):
        model, inputs = llava(side=112, layers=layers)
        blocks = model.model.language_model.layers
        found[layers] = count(lambda model=model, inputs=inputs: model(**inputs), blocks)
        cost = fv.cost(model, text_tokens=BEFORE + 20, vision_tokens=64)
        decoder = count(lambda model=model: model.model.language_model(inputs_embeds=torch.zeros(1, 119, 32)))
        assert decoder.flops == cost.prefill_flops
    assert found[16].per_layer == 2 * found[8].per_layer
    around = {found[layers].operators - sum(found[layers].per_layer) for layers in found}
    assert len(around) == 1


def test_bytes_are_those_of_new_tensors_and_the_peak_of_those_that_live():
    ones = torch.ones(1000)

    def work():
        kept = ones + 1
        for _ in range(3):
            kept + 1  # made and let go

    found = count(work)
    assert found.made == 4 * 4000
    assert found.peak == 2 * 4000
    assert found.operators == 4
    assert found.waits == {}


def test_a_view_is_no_new_tensor():
    ones = torch.ones(10, 10)
    with Memory() as memory:
        ones[2:].unsqueeze(0)
    assert (memory.made, memory.operators > 0) == (0, True)
