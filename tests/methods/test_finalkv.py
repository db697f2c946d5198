from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from foveate.methods.finalkv import FinalKV
from tests.models import DEPTH, IMAGE, MIXED, batch, generate, tiny

V2DROP = fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3))
VISIONDROP = fv.VisionDrop(dominant=14, layer_list=(2,), image_token_list=((7, 2),), reference=25)
EXAMPLES = [V2DROP + FinalKV(), replace(VISIONDROP, include_cls=False) + FinalKV(first_layer=0)]
KEEP_ALL = fv.V2Drop(layers=(1, 3, 4), keep=(1.0, 1.0, 1.0)) + FinalKV()
SMALLEST = fv.V2Drop(layers=(1, 3, 4), keep=(0.3, 0.3, 0.0)) + FinalKV()
FILTER = {"pruning_layers": (1, 3), "global_thr": 0.05, "individual_thr": 0.2}


def prefill(method, inputs):
    with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
        output = tiny("llava")(**inputs, use_cache=True)
    return output, trace


@pytest.mark.parametrize("positions", ["reindex", "keep"])
def test_beside_mustdrop_without_its_cache_stage_it_is_that_stage(positions):
    model, inputs = tiny("llava"), batch("llava", MIXED)
    whole, bare = (fv.MustDrop(**FILTER, merge_windows=False, positions=positions, kv=kv) for kv in (True, False))
    with fv.drop(model, whole) as wanted:
        expected = generate(model, inputs)
    with fv.drop(model, bare + FinalKV()) as trace:
        got = generate(model, inputs)
    with fv.drop(model, bare):
        other = generate(model, inputs)
    assert torch.equal(torch.stack(expected.logits), torch.stack(got.logits))
    assert not torch.equal(torch.stack(other.logits), torch.stack(got.logits))
    assert trace.kv_lengths == wanted.kv_lengths


def test_caches_from_the_first_layer_on_hold_the_final_tokens_and_the_prefill_is_the_other_methods():
    inputs = batch("llava", ["titt"])
    bare, trace = prefill(V2DROP, inputs)
    cut, beside = prefill(V2DROP + FinalKV(first_layer=1), inputs)
    assert torch.equal(bare.logits, cut.logits)
    vision, text = ((inputs["input_ids"][0] == IMAGE) == flag for flag in (True, False))
    vision, text = vision.nonzero()[:, 0], text.nonzero()[:, 0]
    final = torch.cat((text, vision[trace.stages[-1].kept[0]]))
    stood = {1: 0, 2: 0, 3: 1}  # which cut's tokens these layers processed
    for layer in range(DEPTH):
        rows = slice(None)
        if layer in stood:
            columns = torch.cat((text, vision[trace.stages[stood[layer]].kept[0]])).sort().values
            rows = torch.isin(columns, final)
        for part in ("keys", "values"):
            before, after = (getattr(cache_in(output).layers[layer], part)[0] for output in (bare, cut))
            assert torch.equal(before[:, rows], after)
    assert beside.stages[-1].where == "kv"
    left = beside.stages[-2].after[0]
    assert [layer[0] for layer in beside.kv_lengths] == [len(text) + 25] + [len(text) + left] * (DEPTH - 1)


def test_a_cls_that_is_left_at_the_end_stays_in_earlier_caches():
    _, trace = prefill(VISIONDROP + FinalKV(first_layer=0), batch("llava", ["titt"]))
    assert trace.stages[1].origin[0][0] == -1
    assert [layer[0] for layer in trace.kv_lengths] == [10 + 9] * DEPTH


def padded(where):
    """A ragged batch with its padding on the left, on the right, or on the right and between."""
    inputs = batch("llava", ["titit", "tit", "t"])
    if where == "left":
        return inputs
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        count = int(mask.sum())
        for row in (ids, mask):
            row.copy_(row.roll(count - len(row)))
        if where == "between":
            ids[count - 2 :], mask[count - 2 :] = ids[count - 2 :].roll(1), mask[count - 2 :].roll(1)
    return inputs
