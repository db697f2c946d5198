"""What is read at an image's last column, whose own token may have left: the last row that is left before it."""

import pytest
import torch

import foveate as fv
from tests import oracle
from tests.invariants.references import reference
from tests.invariants.settings import EVERYTHING, KINDS
from tests.models import FAMILIES, TINY, batch, generate, made_of, tiny
from tests.probes import PROBES

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
CAPTION = torch.tensor([11, 12, 13, 14])
METHODS = {
    "random": fv.Random(layers=(1, 3), keep=(0.5, 0.4), seed=3),
    "v2drop": fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3)),
    "reversed": fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3), reverse=True),
    "nothing stays": fv.Random(layers=(2,), keep=(0.0,), min_keep=0),
    "layer merge": PROBES["layer merge"],
}
FORWARD = [one for one in FAMILIES if not TINY[one].prefix]
"""Families whose captions do not see themselves from both sides."""
CAPTIONED = [
    (name, family)
    for at, family in enumerate(FORWARD)
    for index, name in enumerate(METHODS)
    if EVERYTHING or (index + at) % 3 == 0
]


def captioned(family, word):
    """A prompt, and the same with a caption behind it in the same call."""
    prompt = batch(family, [word])
    ids = torch.cat((prompt["input_ids"], CAPTION[None]), dim=1)
    whole = prompt | {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | TINY[family].extra(ids)
    positions = oracle.positions(tiny(family), prompt, len(CAPTION))
    whole["position_ids"] = positions[0] if positions.shape[0] == 1 else positions
    return prompt, whole


@pytest.mark.parametrize(("name", "family"), CAPTIONED)
def test_the_logits_and_the_loss_of_a_caption_are_those_of_the_recompute(family, name):
    model, method = tiny(family), METHODS[name]
    prompt, whole = captioned(family, "tti")
    length = prompt["input_ids"].shape[1]
    labels = whole["input_ids"].clone()
    labels[:, :length] = -100
    with fv.drop(model, method) as trace, torch.no_grad():
        out = model(**whole, labels=labels)
    with torch.no_grad():
        logits, _ = oracle.forward(model, prompt, CAPTION, **reference(method, family, model, prompt, trace))
    torch.testing.assert_close(out.logits[0, length - 1 :], logits, **CLOSE)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(logits[:-1], CAPTION), **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_columns_behind_images_are_the_same_in_a_ragged_batch(family):
    method = METHODS[("random", "layer merge")[FAMILIES.index(family) % 2]]
    model, words = tiny(family), ("titit", "tit", "tti", "ttt")
    with fv.drop(model, method), torch.no_grad():
        together = model(**batch(family, words)).logits
        for row, word in zip(together, words, strict=True):
            one = batch(family, [word])
            alone = model(**one).logits[0]
            vision = torch.isin(one["input_ids"][0], torch.tensor([91, 92]))
            ends = vision & ~torch.cat((vision[1:], torch.tensor([False])))
            read = ~vision | ends
            torch.testing.assert_close(row[-len(alone) :][read], alone[read], **CLOSE)


@pytest.mark.parametrize("family", [one for one in KINDS if one in FORWARD and not TINY[one].recurrent])
def test_assisted_decoding_of_a_prompt_that_ends_in_an_image_agrees_with_greedy(family):
    model, inputs = tiny(family), batch(family, ["tti"])
    helper = made_of(family, TINY[family].config())
    with torch.no_grad():
        for weight in helper.lm_head.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))

    def agree():
        greedy = generate(model, inputs, new_tokens=8)
        assisted = generate(model, inputs, new_tokens=8, assistant_model=helper)
        return torch.equal(greedy.sequences, assisted.sequences)

    if not agree():
        pytest.skip("the untouched model's assisted decoding is not greedy either")
    for method in (METHODS["random"], METHODS["v2drop"], METHODS["reversed"]):
        with fv.drop(model, method):
            assert agree()


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_hidden_states_between_layers_keep_the_last_value_of_what_left(family):
    """Only the decoder's output has another row in an image's last column."""
    model, method = tiny(family), fv.Random(layers=(2,), keep=(0.3,), seed=2)
    _, whole = captioned(family, "tti")
    with fv.drop(model, method) as trace, torch.no_grad():
        out = model(**whole, output_hidden_states=True)
    columns = (whole["input_ids"][0] == 91).nonzero()[:, 0]
    gone = columns[~torch.isin(torch.arange(len(columns)), trace.stages[0].kept[0])]
    assert columns[-1] in gone
    for states in out.hidden_states[3:-1]:
        assert torch.equal(states[0, gone], out.hidden_states[2][0, gone])
    last = columns[trace.stages[0].kept[0][-1]]
    assert torch.equal(out.hidden_states[-1][0, columns[-1]], out.hidden_states[-1][0, last])


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_bare_forwards_follow_each_other_whatever_the_first_ended_in(family):
    """Their caches are gone, or there were none."""
    model, method = tiny(family), METHODS["v2drop"]
    with fv.drop(model, method), torch.no_grad():
        for use_cache in (True, False, True):
            expected = model(**batch(family, ["tti"]), use_cache=use_cache).logits
            for word in ("itt", "tti"):
                again = model(**batch(family, [word], start=False), use_cache=False).logits
        with_cache = model(**batch(family, ["tti"])).logits
    torch.testing.assert_close(with_cache, expected, **CLOSE)
    assert again.isfinite().all()
