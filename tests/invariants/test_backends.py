"""Invariants 5 and 7: backends agree, and half precision ranks in float32."""

import copy

import pytest
import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask, sdpa_mask

import foveate as fv
from tests.invariants.settings import EXAMPLES, FIRST, KINDS, part, works
from tests.models import DEPTH, FAMILIES, IMAGE, MIXED, TINY, batch, generate, tiny
from tests.probes import PROBES

CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def flash_like(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
    """What flash attention does, on a CPU: takes samples apart by a 2-D mask, aligns causality, if its module wants it,
    to the last key, and reads position ids with gaps in a single row as packed samples."""
    samples, _, rows, _ = query.shape
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    assert position_ids is None or position_ids.shape[-1] == rows, "ids of rows that are not there"
    if attention_mask is None and samples == 1 and rows > 1 and position_ids is not None:
        assert (position_ids.diff() == 1).all(), "packed"
    out = torch.zeros_like(query)
    for sample in range(samples):
        slots = torch.ones(key.shape[2], dtype=torch.bool)
        if attention_mask is not None:
            assert attention_mask.dim() == 2
            slots = attention_mask[sample, -key.shape[2] :].bool()
        lines = slots[-rows:] if rows > 1 else torch.ones(1, dtype=torch.bool)
        q, k, v = query[sample][:, lines], key[sample][:, slots], value[sample][:, slots]
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        mask = mask.tril(k.shape[1] - q.shape[1]) if getattr(module, "is_causal", True) else mask
        out[sample][:, lines] = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2), None


AttentionInterface.register("flash_like", flash_like)
AttentionMaskInterface.register("flash_like", flash_attention_mask)
AttentionInterface.register("own_kernel", sdpa_attention_forward)
AttentionInterface.register("own_kernel_with_masks", sdpa_attention_forward)
AttentionMaskInterface.register("own_kernel_with_masks", sdpa_mask)


ONE = ("titit",)
BACKENDS = [("eager", MIXED, 6), ("flash_like", MIXED, 4), ("flash_like", ONE, 4)]
"""A kernel, the prompts, and how many parts the pairs are taken from. The recompute holds for eager attention too."""
# These GLMs hand flash attention ids with gaps, which it reads as packed samples, whoever drops.
GAPS = ("glm46v", "glm4v_moe")


# Each takes a second, and what it tries, masks made anew, is alike for all methods.
FLEX = [
    (name, family)
    for name, family in part(FIRST, 0, of=5)
    if getattr(transformers, TINY[family].kind)._supports_flex_attn and name in ("layer cut", "layer merge", "cache")
]


@pytest.mark.parametrize(
    ("attention", "words", "name", "family"),
    [
        (attention, words, *pair)
        for index, (attention, words, of) in enumerate(BACKENDS)
        for pair in part(FIRST, index, of)
        if words is not ONE or pair[1] not in GAPS
    ]
    + [("flex_attention", MIXED, *pair) for pair in FLEX],
    ids=lambda value: "alone" if value is ONE else "batch" if value is MIXED else None,
)
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, about torch
def test_backends_agree_with_sdpa(words, name, family, attention, request):
    if attention == "flex_attention":  # torch cannot compile it for every mask on a CPU
        stance = torch.compiler.set_stance("force_eager")
        request.addfinalizer(lambda: stance.__exit__(None, None, None))
    inputs = batch(family, words)
    with fv.drop(tiny(family), EXAMPLES[name]) as reference:
        expected = generate(tiny(family), inputs, new_tokens=3)
    if attention == "flash_like" and any(map(TINY[family].window, range(DEPTH))):
        refused = pytest.raises(fv.UnsupportedError, match="sliding window, and flash attention counts it")
        with fv.drop(tiny(family, attention), EXAMPLES[name]), refused:
            generate(tiny(family, attention), inputs)
        return
    with fv.drop(tiny(family, attention), EXAMPLES[name]) as trace:
        got = generate(tiny(family, attention), inputs, new_tokens=3)
    assert torch.equal(got.sequences, expected.sequences)
    torch.testing.assert_close(torch.cat(got.logits), torch.cat(expected.logits), **CLOSE)
    for a, b in zip(trace.stages, reference.stages, strict=True):
        assert [x.tolist() for x in a.kept] == [x.tolist() for x in b.kept]


@pytest.mark.parametrize("name", [name for name in PROBES if works(name, "llava")])
def test_a_kernel_of_ones_own_with_masks_agrees_with_sdpa(name):
    test_backends_agree_with_sdpa(MIXED, name, "llava", "own_kernel_with_masks", None)


def test_an_attention_that_gets_no_masks_works_alone_and_is_refused_in_a_ragged_batch():
    """A name missing from transformers' mask registry silently gets no mask at all."""
    model, method = tiny("llava", "own_kernel"), fv.V2Drop(layers=(1,), keep=(0.5,))
    with fv.drop(model, method):
        alone = generate(model, batch("llava", ["tit"]))
    with fv.drop(tiny("llava"), method):
        expected = generate(tiny("llava"), batch("llava", ["tit"]))
    assert torch.equal(alone.sequences, expected.sequences)
    with fv.drop(model, method), pytest.raises(fv.UnsupportedError, match="attention kernel 'own_kernel' is not known"):
        generate(model, batch("llava", ["tit", "titt"]))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_like", "own_kernel_with_masks"])
def test_a_ragged_batch_without_padding(attention):
    """Two prompts of equal length, one with more of it in pictures: the model sees no reason for a mask."""
    words, method = ("tittttttttt", "tttittttti"), fv.V2Drop(layers=(1, 3), keep=(0.5, 0.5))
    family = "qwen2_vl"
    model, inputs = tiny(family, attention), batch(family, words)
    alone = [batch(family, [word]) for word in words]
    cut = min(one["input_ids"].shape[1] for one in alone)
    if len({one["input_ids"].shape[1] for one in alone}) > 1:  # drop text in front until lengths agree
        inputs = {**inputs, "input_ids": torch.stack([row[-cut:] for row in inputs["input_ids"]])}
        for name in ("attention_mask", "mm_token_type_ids"):
            inputs[name] = inputs[name][:, -cut:]
    assert inputs["attention_mask"].all()
    grids = inputs["image_grid_thw"]
    with fv.drop(model, method) as trace:
        out = generate(model, inputs)
        assert len(set(trace.stages[0].after)) == 2
        for index, pictures in enumerate((slice(0, 1), slice(1, 3))):
            pixels = inputs["pixel_values"].split(grids.prod(-1).tolist())[pictures]
            one = {
                name: inputs[name][index : index + 1] for name in ("input_ids", "attention_mask", "mm_token_type_ids")
            }
            single = generate(model, {**one, "pixel_values": torch.cat(pixels), "image_grid_thw": grids[pictures]})
            assert torch.equal(out.sequences[index], single.sequences[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_ranks_the_same_hidden_states_in_float32(family):
    dtype = (torch.bfloat16, torch.float16)[FAMILIES.index(family) % 2]
    model = copy.deepcopy(tiny(family)).to(dtype)
    inputs = batch(family, ["titit"])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    method = fv.V2Drop(layers=(2, 4), keep=(0.6, 0.5))
    with fv.drop(model, method) as trace, torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    columns = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    alive = torch.arange(len(columns))
    for layer, ratio, stage in zip(method.layers, method.keep, trace.stages, strict=True):
        now, then = (states[i][0, columns[alive]].float() for i in (layer, layer - 1))
        order = torch.sort((now - then).norm(dim=-1), descending=True, stable=True).indices
        alive = alive[order[: int(len(alive) * ratio)].sort().values]
        assert stage.kept[0].tolist() == alive.tolist()


@pytest.mark.parametrize("family", KINDS)
def test_keep_all_is_bit_identical_in_bfloat16(family):
    model = copy.deepcopy(tiny(family)).to(torch.bfloat16)
    inputs = batch(family, MIXED)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    with torch.no_grad():
        plain = model(**inputs).logits
        with fv.drop(model, fv.V2Drop(layers=(1,), keep=(1.0,))):
            assert torch.equal(model(**inputs).logits, plain)
