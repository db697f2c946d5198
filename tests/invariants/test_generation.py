"""Invariant 6: whatever generation people use works, or refuses loudly."""

import functools

import pytest
import torch
from transformers import DynamicCache

import foveate as fv
from foveate._transformers import cache_in, recomputes_from_outside, with_cache
from foveate.engine.cache import PrunedLayer
from tests import oracle
from tests.invariants.settings import KINDS, kernel_of
from tests.models import (
    ENCODES_FIRST,
    FAMILIES,
    IMAGE,
    TINY,
    batch,
    generate,
    is_vision,
    sample,
    slots,
    tiny,
)

METHOD = fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3))
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def prompt_length(inputs):
    return inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_on_a_ragged_batch(family):
    model, words = tiny(family, kernel_of(family)), ("titt", "titit", "tt")
    settings = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5, "output_scores": True}
    with fv.drop(model, METHOD):
        out = generate(model, batch(family, words), **settings)
        for index, word in enumerate(words):
            one = batch(family, [word])
            alone = generate(model, one, **settings)
            got = out.sequences[2 * index : 2 * index + 2, prompt_length(batch(family, words)) :]
            assert torch.equal(got, alone.sequences[:, prompt_length(one) :])
            torch.testing.assert_close(
                out.sequences_scores[2 * index : 2 * index + 2], alone.sequences_scores, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("family", KINDS)
def test_beam_search_is_the_same_without_a_cache(family):
    model, inputs = tiny(family), batch(family, ["titt", "tit"])
    with fv.drop(model, METHOD):
        cached = generate(model, inputs, num_beams=3)
        plain = generate(model, inputs, num_beams=3, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)


@pytest.mark.parametrize("family", KINDS)
def test_sampling_with_a_seed_repeats(family):
    model, inputs = tiny(family), batch(family, ["titt", "tit"])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        with fv.drop(model, METHOD):
            runs.append(generate(model, inputs, do_sample=True, temperature=1.5, top_k=0, num_return_sequences=2))
    assert torch.equal(runs[0].sequences, runs[1].sequences)


@pytest.mark.parametrize("family", [one for one in FAMILIES if not TINY[one].recurrent])
def test_prompt_lookup_decoding_crops_and_agrees_with_greedy(family, monkeypatch):
    model, inputs = tiny(family), batch(family, ["tittttt"])
    # A prompt that repeats itself, so that there are candidates to look up, right and wrong.
    inputs["input_ids"][:, -6:] = torch.tensor([5, 6, 7, 5, 6, 7])
    crops, original = [], PrunedLayer.crop

    def counted(self, tokens_to_remove):
        crops.append(tokens_to_remove)
        return original(self, tokens_to_remove)

    monkeypatch.setattr(PrunedLayer, "crop", counted)
    with fv.drop(model, METHOD):
        greedy = generate(model, inputs, new_tokens=12)
        looked_up = generate(model, inputs, new_tokens=12, prompt_lookup_num_tokens=3)
    assert any(crop < 0 for crop in crops)
    assert torch.equal(greedy.sequences, looked_up.sequences)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_of_text_on_the_same_cache(family):
    """Full recompute of both turns with the picture's kept tokens held: the same logits."""
    model, inputs = tiny(family, kernel_of(family)), batch(family, ["titt"])
    length = prompt_length(inputs)
    with fv.drop(model, METHOD) as trace:
        first = generate(model, inputs, new_tokens=4)
        cuts = {stage.layer: stage.kept[0] for stage in trace.stages}
        turn = torch.tensor([[11, 12, 13, 14, 15]])
        ids = torch.cat((first.sequences, turn), dim=1)
        second = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **with_cache(cache_in(first))}
        second |= TINY[family].extra(ids)
        second |= {name: inputs[name] for name in inputs if name.endswith("grid_thw")}
        out = generate(model, second, new_tokens=3)
        assert len(trace.history) == 1  # nothing was dropped in a turn without pictures
    generated = out.sequences[0, length:-1]
    with torch.no_grad():
        logits, _ = oracle.forward(model, inputs, generated, cuts)
    torch.testing.assert_close(torch.cat(out.logits), logits[-3:], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_with_a_new_picture_drops_only_its_tokens(family):
    """One prompt in two calls, a picture in each, against a recompute of the whole."""
    model, whole = tiny(family, kernel_of(family, 1)), batch(family, ["tttitttitt"])
    ids = whole["input_ids"]
    pieces, pictures = sample(family, "tttitttitt")
    split = sum(map(len, pieces[:7]))  # between texts that are between the pictures
    positions = oracle.positions(model, whole, 0)
    positions = positions[0] if positions.shape[0] == 1 else positions
    cache = DynamicCache(config=model.config.get_text_config())
    parts = ((slice(0, split), pictures[0]), (slice(split, None), pictures[1]))
    with fv.drop(model, METHOD) as trace, torch.no_grad():
        for part, picture in parts:
            arguments = {"input_ids": ids[:, part], "position_ids": positions[..., part], **picture}
            for name, of_prompt in TINY[family].extra(ids[:, : part.stop]).items():
                arguments[name] = of_prompt if TINY[family].from_start else of_prompt[:, part]
            out = model(**arguments, **with_cache(cache), use_cache=True)
    first, second = trace.history
    assert second.stages[0].before == second.vision_tokens
    cuts = {
        a.layer: torch.cat((a.kept[0], b.kept[0] + first.vision_tokens[0]))
        for a, b in zip(first.stages, second.stages, strict=True)
    }
    sees = functools.partial(TINY[family].sees, turn=split) if TINY[family].prefix else None
    with torch.no_grad():
        logits, _ = oracle.forward(model, whole, torch.tensor([], dtype=torch.long), cuts, sees=sees)
    torch.testing.assert_close(out.logits[0, -1], logits[0], **CLOSE)
    text = int((~is_vision(ids)).sum())
    assert [layer[0] for layer in second.kv_lengths] == [
        TINY[family].held(layer, text + a + b)
        for layer, ((a,), (b,)) in enumerate(zip(first.per_layer, second.per_layer, strict=True))
    ]
    assert slots(cache) == [layer[0] for layer in second.kv_lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_full_length(family):
    """Also where capturing was installed first, and before layer 0; dropped tokens keep their last value."""
    model, inputs = tiny(family), batch(family, ["titt", "tit"])
    method = fv.Uniform(layers=(0, 3), keep=(0.7, 0.5))
    if FAMILIES.index(family) % 2:  # otherwise capturing begins inside
        with torch.no_grad():
            model(**inputs, output_hidden_states=True)
    with fv.drop(model, method) as trace, torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == 7
    assert {tuple(state.shape[:2]) for state in states} == {tuple(inputs["input_ids"].shape)}
    columns = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    gone = sorted(set(range(len(columns))) - set(trace.stages[1].kept[0].tolist()))
    assert torch.equal(states[4][0, columns[gone]], states[5][0, columns[gone]])
    left = columns[trace.stages[1].kept[0]]
    assert not torch.equal(states[4][0, left], states[5][0, left])


@pytest.mark.parametrize("family", KINDS)
def test_logits_to_keep(family):
    model, inputs = tiny(family), batch(family, ["titt", "tit"])
    with fv.drop(model, METHOD), torch.no_grad():
        every = model(**inputs).logits
        torch.testing.assert_close(model(**inputs, logits_to_keep=1).logits, every[:, -1:], **CLOSE)
        picked = torch.tensor([every.shape[1] - 4, every.shape[1] - 1])
        torch.testing.assert_close(model(**inputs, logits_to_keep=picked).logits, every[:, picked], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients(family):
    """The loss reads full-length labels, and gradients flow through what was kept alone; on every other family with
    checkpoints."""
    model, inputs, checkpointing = tiny(family), batch(family, ["titt", "tit"]), bool(FAMILIES.index(family) % 2)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    if checkpointing:
        switch(model, "enable", {"use_reentrant": False})
        model.train()
    try:
        with fv.drop(model, METHOD):
            if recomputes_from_outside(model.get_decoder().layers[0]):  # transformers 5.16
                with pytest.raises(fv.UnsupportedError, match="Gradient checkpointing"):
                    model(**inputs, labels=labels, use_cache=False)
                return
            out = model(**inputs, labels=labels, use_cache=False)
            out.loss.backward()
    finally:
        if checkpointing:
            switch(model, "disable")
        model.eval()
    rows = labels[:, 1:] != -100
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1][rows].float(), labels[:, 1:][rows])
    torch.testing.assert_close(out.loss, expected, **CLOSE)
    gradients = [weight.grad for weight in model.get_decoder().parameters() if weight.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    model.zero_grad(set_to_none=True)


def switch(model, on, *settings):
    """Gradient checkpointing, by the name this version of transformers has for it."""
    name = f"activation_checkpointing_{on}"
    getattr(model, name if hasattr(model, name) else f"gradient_checkpointing_{on}")(*settings)


@pytest.mark.skipif(not ENCODES_FIRST, reason="here transformers fills a cache with zeros and calls it reset")
@pytest.mark.parametrize("family", KINDS)
def test_a_cache_that_was_reset_starts_anew(family):
    model, inputs = tiny(family), batch(family, ["titt"])
    with fv.drop(model, METHOD):
        fresh = generate(model, inputs)
        cache = cache_in(fresh)
        cache.reset()
        again = generate(model, inputs, **with_cache(cache))
    assert torch.equal(fresh.sequences, again.sequences)
    cache.reset()
    plain = generate(model, inputs)
    reused = generate(model, inputs, **with_cache(cache))  # outside the context an empty layer is a plain one
    assert torch.equal(plain.sequences, reused.sequences)
