"""Invariant: `trace.pooling_mask` marks the columns whose rows ran to the end, and no other, on every family."""

import pytest
import torch

import foveate as fv
from tests.invariants import facts
from tests.invariants.settings import EXAMPLES, FILMS, one_each, part
from tests.invariants.test_batch import padded_right
from tests.models import FAMILIES, batch, generate, is_vision, mixed, tiny, with_video

pytestmark = pytest.mark.filterwarnings("ignore:The last layer has:UserWarning")
METHOD = fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5))


def hidden_states(model, inputs, method):
    """The decoder's output in a context, (samples, columns, width), and the trace."""
    rows = []
    hook = model.get_decoder().register_forward_hook(lambda _, args, output: rows.append(output.last_hidden_state))
    try:
        with torch.no_grad(), fv.drop(model, method) as trace:
            model(**inputs)
    finally:
        hook.remove()
    return rows[-1], trace


def with_other_last_layer(model, inputs, method):
    """The same where the last layer has other weights."""
    weights = [weight for weight in model.get_decoder().layers[-1].parameters() if weight.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    noise = torch.Generator().manual_seed(1)
    try:
        with torch.no_grad():
            for weight in weights:
                weight.add_(0.1 * torch.randn(weight.shape, generator=noise))
        return hidden_states(model, inputs, method)
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.copy_(old)


def check(model, inputs, method):
    hidden, trace = hidden_states(model, inputs, method)
    mask, live = trace.pooling_mask, inputs["attention_mask"]
    assert (mask.shape, mask.dtype, mask.device) == (live.shape, torch.int64, live.device)
    assert not mask[live == 0].any()
    vision = is_vision(inputs["input_ids"])
    assert mask[(live == 1) & ~vision].all()
    left = trace.cuts[-1].after if trace.cuts else trace.vision_tokens
    assert (mask * vision).sum(dim=1).tolist() == list(left)
    for sample, origin in enumerate(trace.cuts[-1].origin if trace.cuts else ()):
        if trace.cuts[-1].assign[sample] is None:  # else merged rows stand in other columns than their tokens
            columns = vision[sample].nonzero()[:, 0]
            assert torch.equal((mask * vision)[sample].nonzero()[:, 0], columns[origin])

    other, again = with_other_last_layer(model, inputs, method)
    assert torch.equal(again.pooling_mask, mask)
    moved = (other != hidden).any(dim=-1)
    assert moved[mask == 1].all()
    for sample, column in ((live == 1) & (mask == 0) & moved).nonzero().tolist():
        # An image's last column has a copy of the last row before it.
        rows = mask[sample, :column].nonzero()[:, 0]
        assert torch.equal(hidden[sample, column], hidden[sample, rows[-1]])
    return trace


@pytest.mark.parametrize(("name", "family"), part(one_each(5), 0, of=2))
def test_the_marked_rows_are_those_that_the_last_layer_ran_on(name, family):
    if facts.attends_in(EXAMPLES[name]) & {len(tiny(family).get_decoder().layers) - 1}:
        pytest.skip("it reads the last layer, whose weights change here")
    words = [with_video(family), "tvt"] if name in FILMS else ["titit", "tit", "tt"]
    for at in words if name in FILMS else [words]:
        check(tiny(family), batch(family, [at] if isinstance(at, str) else at), EXAMPLES[name])


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_with_padding_on_either_side(family):
    inputs = batch(family, mixed(family))
    trace = check(tiny(family), inputs, METHOD)
    right = check(tiny(family), padded_right(inputs), METHOD)
    for index, word in enumerate(mixed(family)):
        with fv.drop(tiny(family), METHOD) as alone, torch.no_grad():
            tiny(family)(**batch(family, [word]))
        (own,) = alone.pooling_mask
        assert torch.equal(trace.pooling_mask[index, -len(own) :], own)
        assert torch.equal(right.pooling_mask[index, : len(own)], own)


@pytest.mark.parametrize("name", ["mustdrop", "v2drop+finalkv"])
def test_cuts_of_caches_do_not_change_it(name):
    model, inputs = tiny("llava"), batch("llava", ["titit", "tit"])
    method = fv.MustDrop(pruning_layers=(1, 3), retention=0.63, merge_threshold=0.3)
    if name != "mustdrop":
        method = METHOD + fv.FinalKV()
    with torch.no_grad(), fv.drop(model, method) as cached:
        model(**inputs, use_cache=True)
    with torch.no_grad(), fv.drop(model, method) as plain:
        model(**inputs, use_cache=False)
    assert any(cut.where == "kv" for cut in cached.cuts)
    assert torch.equal(cached.pooling_mask, plain.pooling_mask)


def test_it_is_of_the_latest_prefill_and_text_is_all_there():
    model, texts = tiny("llava"), batch("llava", ["tt", "ttt"])
    with fv.drop(model, METHOD) as trace:
        with pytest.raises(fv.SessionError, match="yet"):
            _ = trace.pooling_mask
        generate(model, batch("llava", ["tit"]))
        first = trace.pooling_mask
        generate(model, texts)
    assert torch.equal(trace.history[0].pooling_mask, first)
    assert torch.equal(trace.pooling_mask, texts["attention_mask"])
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(1.0,))) as whole, torch.no_grad():
        model(input_ids=batch("llava", ["tit"])["input_ids"], pixel_values=batch("llava", ["tit"])["pixel_values"])
    assert whole.pooling_mask.all()


def test_a_prefill_that_failed_has_none():
    model = tiny("llava")

    def fail(*_):
        raise FloatingPointError

    handle = model.get_decoder().layers[4].mlp.register_forward_pre_hook(fail)
    try:
        with fv.drop(model, METHOD) as trace, pytest.raises(FloatingPointError):
            generate(model, batch("llava", ["tit"]))
    finally:
        handle.remove()
    with pytest.raises(fv.SessionError, match="end"):
        _ = trace.pooling_mask


@pytest.mark.parametrize("method", [METHOD, fv.DivPrune(retention=1 / 3)], ids=["v2drop", "divprune"])
def test_replayed_prompts_have_their_own(graphs_on_cpu, method):
    model = tiny("llava")
    prompts = [batch("llava", words, seed) for seed, words in enumerate([["titt", "tit"], *[["tittt", "titt"]] * 4])]
    with fv.drop(model, method) as plain:
        for inputs in prompts:
            generate(model, inputs, new_tokens=2)
    with fv.drop(model, method, cuda_graphs=True) as trace:
        for inputs in prompts:
            generate(model, inputs, new_tokens=2)
    assert trace.graphs.decoder.replayed
    assert all(torch.equal(a.pooling_mask, b.pooling_mask) for a, b in zip(trace.history, plain.history, strict=True))
