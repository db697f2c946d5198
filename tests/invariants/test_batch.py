"""Invariant 4: a batch equals each of its samples run alone."""

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in
from tests.invariants.alone import check_alone, left
from tests.invariants.settings import EVERYTHING, EXAMPLES, KINDS, diagonal, kernel_of, one_each, part, with_kernels
from tests.models import DEPTH, FAMILIES, TINY, batch, is_vision, mixed, slots, tiny

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.mark.parametrize(("name", "family", "attention"), with_kernels(one_each(1), 1))
def test_a_batch_is_its_samples_run_alone(name, family, attention):
    words = mixed(family)
    half = words[diagonal(name, family) % 2 :: 2]  # no picture beside one, and two; where there are videos, they too
    check_alone(tiny(family, attention), family, EXAMPLES[name], words if EVERYTHING else half)


def padded_right(inputs):
    """A left-padded batch with its padding behind the samples, as scoring and training have it."""
    shape, counts = inputs["input_ids"].shape, inputs["attention_mask"].sum(dim=1)
    places = (torch.arange(shape[1]) - counts[:, None]) % shape[1]
    return {name: value.gather(1, places) if value.shape == shape else value for name, value in inputs.items()}


@pytest.mark.parametrize(("name", "family", "attention"), with_kernels(part(one_each(2), 1, of=3), 2))
def test_padding_on_the_right_is_as_none(name, family, attention):
    """The last token of a sample is its last one that is no padding, for every method and however it ends."""
    model, words = tiny(family, attention), [*mixed(family), "tti"][diagonal(name, family) % 2 :: 2]
    right = padded_right(batch(family, words))
    with torch.no_grad():
        with fv.drop(model, EXAMPLES[name]) as together:
            logits = model(**right).logits
        for index, word in enumerate(words):
            with fv.drop(model, EXAMPLES[name]) as alone:
                expected = model(**batch(family, [word])).logits[0, -1]
            assert left(together, index) == left(alone, 0)
            assert together.retention[index] == alone.retention[0]
            last = int(right["attention_mask"][index].sum()) - 1
            torch.testing.assert_close(logits[index, last], expected, **CLOSE)


@pytest.mark.parametrize("family", KINDS)
def test_a_ragged_batch_shrinks(family):
    """The batch's own padding counts for nothing once tokens have left."""
    model, inputs = tiny(family), batch(family, ["ti", "tttttttt" * 6])
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(0.0,))), torch.no_grad():
        cache = cache_in(model(**inputs))
    alone = batch(family, ["tttttttt" * 6])["input_ids"].shape[1]
    assert slots(cache)[-1] == TINY[family].held(DEPTH - 1, alone)


@pytest.mark.parametrize(
    ("where", "family"),
    # A state fades where padding is between tokens, whoever drops: transformers' own forward differs then.
    [("right", one) for one in FAMILIES] + [("between", one) for one in FAMILIES if not TINY[one].recurrent],
)
def test_padding_right_of_or_between_real_tokens(family, where):
    """Masked columns anywhere are dead: the real tokens' logits are those of the sample without them."""
    model = tiny(family, kernel_of(family, where == "right"))
    one, method = batch(family, ["tit"]), fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4))
    length = one["input_ids"].shape[1]
    at = length if where == "right" else length - 2
    padded = dict(one)
    for name in one:
        if one[name].shape == one["input_ids"].shape:
            pad = one[name].new_zeros(1, 4)
            padded[name] = torch.cat((one[name][:, :at], pad, one[name][:, at:]), dim=1)
    real = padded["attention_mask"][0].bool()
    ids = torch.zeros_like(padded["input_ids"])
    ids[0, real] = torch.arange(length)
    if not TINY[family].mrope:
        padded["position_ids"] = ids
    with torch.no_grad():
        with fv.drop(model, method) as alone:
            expected = model(**one).logits[0]
        with fv.drop(model, method) as trace:
            got = model(**padded).logits[0, real]
    assert [s.kept[0].tolist() for s in trace.stages] == [s.kept[0].tolist() for s in alone.stages]
    text = ~is_vision(one["input_ids"][0])
    if any(map(TINY[family].window, range(DEPTH))):
        text[at:] = False  # the model itself counts padding among the columns of a window
    torch.testing.assert_close(got[text], expected[text], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_reads_a_masked_last_column_as_the_model_does(family):
    """Right padding: the next token comes from the last row, padding or not, so that row is kept up to date."""
    model, inputs = tiny(family, kernel_of(family)), batch(family, ["tit"])
    for name in [name for name in inputs if inputs[name].shape == inputs["input_ids"].shape]:
        pad = inputs[name].new_full((1, 2), 5 if name == "input_ids" else 0)
        inputs[name] = torch.cat((inputs[name], pad), dim=1)
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
        with fv.drop(model, fv.V2Drop(layers=(3,), keep=(0.96,))) as trace:  # one token or none leaves
            nearly = model(**inputs).logits[0, -1]
        with fv.drop(model, fv.V2Drop(layers=(1,), keep=(1.0,))):
            same = model(**inputs).logits[0, -1]
        embeds = model.model.get_input_embeddings()(inputs["input_ids"])[0, -1]
    assert torch.equal(same, plain)
    stale = model.lm_head(model.get_decoder().norm(embeds))
    assert trace.stages[0].after[0] < trace.vision_tokens[0]
    assert (nearly - plain).abs().max() < 0.5 * (stale - plain).abs().max()
    left = trace.vision_tokens[0] - trace.stages[0].after[0]
    real = int(inputs["attention_mask"].sum()) - left
    assert trace.kv_lengths[4] == [TINY[family].held(4, real + 1) - 1]  # the padding that is read is stored
