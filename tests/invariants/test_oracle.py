"""Invariant 3: cached generation = generation without a cache = an independent recompute."""

from functools import cache

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from tests import oracle
from tests.invariants import facts
from tests.invariants.references import check_recomputed
from tests.invariants.settings import EXAMPLES, PROMPT_RUNS, kernel_of, one_each, part, with_kernels, works
from tests.models import PROMPTS, TINY, batch, generate, slots, tiny

DEEPSTACK = {"qwen3_vl", "qwen3_vl_moe"}


def recomputed(name, family):
    """Not where deepstack features are the smaller picture's too: tests/methods/test_resize.py recomputes that."""
    return not facts.of_pixels(EXAMPLES[name]) or family not in DEEPSTACK


CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@cache
def untouched(family, word, attention):
    """The recompute's last logits of a prompt of which nothing is dropped."""
    with torch.no_grad():
        logits, _ = oracle.forward(tiny(family, attention), batch(family, [word]), torch.tensor([]).long(), {})
    return logits[0]


@pytest.mark.parametrize(("name", "family", "word", "attention"), [one for one in PROMPT_RUNS if recomputed(*one[:2])])
def test_cached_generation_is_the_recompute(name, family, word, attention):
    model, inputs, method = tiny(family, attention), batch(family, [word]), EXAMPLES[name]
    trace, logits = check_recomputed(model, family, method, inputs)
    if trace.stages and not trace.cuts:
        return  # no token left; what the tower makes of fewer rows has a reference of its own
    assert min(trace.latest.per_layer)[0] < trace.vision_tokens[0]
    assert (untouched(family, word, attention) - logits[0]).abs().max() > 0.01  # dropping is no rounding error


@pytest.mark.parametrize(("family", "word"), PROMPTS)
def test_v2drop_chooses_what_the_recompute_chooses(family, word):
    model, inputs = tiny(family, kernel_of(family, "v" in word)), batch(family, [word])
    method = fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3), scope="image")
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**inputs)
    rules = {layer: oracle.least_changed_leave(ratio) for layer, ratio in zip(method.layers, method.keep, strict=True)}
    with torch.no_grad():
        _, kept = oracle.forward(model, inputs, torch.tensor([], dtype=torch.long), rules)
    assert {stage.layer: stage.kept[0].tolist() for stage in trace.stages} == kept


def recomputes(method):
    """Whether a step without a cache does the same again: what reads text would choose anew by the tokens generated so
    far, and a cache that was cut is not there. For these there is the recompute above."""
    return not facts.reads_text(method) and not facts.kv_layers(method)


@pytest.mark.parametrize(
    ("name", "family"), [pair for pair in part(one_each(2), 0, of=2) if recomputes(EXAMPLES[pair[0]])]
)
def test_no_cache_gives_the_same(name, family):
    model, inputs = tiny(family), batch(family, ["titt", "tit"])
    with fv.drop(model, EXAMPLES[name]) as cached:
        with_cache = generate(model, inputs, new_tokens=3)
    with fv.drop(model, EXAMPLES[name]) as plain:
        without = generate(model, inputs, new_tokens=3, use_cache=False)
    assert torch.equal(with_cache.sequences, without.sequences)
    torch.testing.assert_close(torch.cat(with_cache.logits), torch.cat(without.logits), **CLOSE)
    for a, b in zip(cached.stages, plain.history[0].stages, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.kept, b.kept, strict=True))
    assert cached.kv_lengths
    assert plain.kv_lengths == []


@pytest.mark.parametrize(("family", "word"), PROMPTS)
def test_cutting_before_the_decoder_is_a_shortened_prompt_bit_for_bit(family, word):
    model, inputs, hidden = tiny(family), batch(family, [word]), []
    with fv.drop(model, fv.Uniform(layers=(0,), keep=(0.5,))) as trace, torch.no_grad():
        logits = model(**inputs, logits_to_keep=1).logits
        cache = cache_in(model(**inputs))
        hook = model.get_decoder().register_forward_hook(lambda *call: hidden.append(call[-1].last_hidden_state[0]))
        model(**inputs)  # asks for all columns
        hook.remove()
    kept = trace.stages[0].kept[0]
    with torch.no_grad():
        embeds, picture, deep = oracle.embed(model, inputs)
        vision = (picture != -1).nonzero()[:, 0]
        rows = torch.cat(((picture == -1).nonzero()[:, 0], vision[kept])).sort().values
        positions = oracle.positions(model, inputs, 0)[..., rows]
        if positions.shape[0] == 1:
            positions = positions[0]
        arguments = {"inputs_embeds": embeds[:, rows], "position_ids": positions}
        if TINY[family].sees:
            kinds = getattr(model.get_decoder().config, "layer_types", ["all"])
            masks = {
                kind: oracle.visible(model, kinds.index(kind), rows, picture[rows], len(picture))[None, None]
                for kind in set(kinds)
            }
            arguments["attention_mask"] = masks.get("all", masks)
        if deep:
            arguments["visual_pos_masks"] = picture[None, rows] != -1
            arguments["deepstack_visual_embeds"] = [features[kept] for features in deep]
        out = model.get_decoder()(**arguments)
        short = model.lm_head(out.last_hidden_state[:, -1:])
    assert torch.equal(logits, short)
    assert torch.equal(trace.latest.pooling_mask[0].nonzero()[:, 0], rows)
    assert torch.equal(hidden[0][rows], out.last_hidden_state[0])
    assert slots(cache) == [TINY[family].held(index, len(rows)) for index in range(len(cache.layers))]


@pytest.mark.parametrize(
    ("name", "family", "attention"),
    with_kernels(pair for pair in part(one_each(3), 1, of=2) if works(*pair) and recomputed(*pair)),
)
def test_a_prompt_that_ends_in_an_image(name, family, attention):
    """Generation reads the last column, whose own token may have left: the last row that is left answers for it."""
    check_recomputed(tiny(family, attention), family, EXAMPLES[name], batch(family, ["tti"]), new_tokens=2)
