"""How answers are decoded: greedily, whatever a checkpoint says, or as one asks for."""

import pytest
import torch
from transformers import GenerationConfig

import foveate as fv
from foveate import embedded
from foveate._transformers import cache_in
from foveate.ask.generation import generate, run as run_generate

QUESTION = embedded.QUESTION


def test_the_defaults_are_greedy():
    assert not fv.Generation().samples
    arguments = fv.Generation().arguments(None)
    assert (arguments["do_sample"], arguments["num_beams"], arguments["max_new_tokens"]) == (False, 1, 64)
    assert "tokenizer" not in arguments


def test_sampling_takes_from_all_tokens_unless_told_otherwise():
    """transformers takes from the 50 likeliest ones."""
    assert fv.Generation(temperature=1.0).arguments(None)["top_k"] == 0
    assert fv.Generation(temperature=1.0, top_k=7, top_p=0.5).arguments(None)["top_k"] == 7
    assert fv.Generation(temperature=1.0, top_k=7, top_p=0.5).arguments(None)["top_p"] == 0.5


CHECKPOINTS = [
    {"do_sample": True, "temperature": 5.0},
    {"num_beams": 2, "num_return_sequences": 2},
    {"repetition_penalty": 1.5},
    {"do_sample": True, "min_p": 0.9},
    {"max_new_tokens": 1},
    {"max_length": 3},
]


def manual(vlm, prompt, count):
    """The likeliest tokens one after the other, by forwards alone."""
    inputs = dict(prompt.inputs)
    texts = []
    with torch.no_grad():
        for _ in range(count):
            token = vlm.model(**inputs).logits[0, -1].argmax()
            texts.append(int(token))
            if texts[-1] == 2:
                break
            inputs["input_ids"] = torch.cat((inputs["input_ids"], token[None, None]), dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return tuple(texts)


@pytest.fixture(scope="module")
def expected(small, demo):
    prompt = small.prepare(demo, QUESTION)
    return prompt, manual(small, prompt, 5)


@pytest.mark.parametrize("settings", CHECKPOINTS, ids=lambda settings: "-".join(settings))
def test_answers_are_greedy_whatever_the_checkpoint_says(small, expected, monkeypatch, settings):
    vlm, (prompt, tokens) = small, expected
    own = GenerationConfig(**{**vlm.model.generation_config.to_dict(), "bad_words_ids": None, **settings})
    monkeypatch.setattr(vlm.model, "generation_config", own)
    answer = vlm.answer(prompt, generation=fv.Generation(max_new_tokens=5), first=True)
    assert answer.tokens == tokens
    with torch.no_grad():
        logs = vlm.model(**prompt.inputs).logits[0, -1].float().log_softmax(-1)
    torch.testing.assert_close(answer.first, logs, atol=1e-4, rtol=1e-4)
    streamed = vlm.ask(prompt.media[0], prompt.text, stream=True, max_new_tokens=5)
    assert "".join(streamed) == answer.text


def test_a_checkpoints_cut_offs_do_not_reach_sampling(small, demo, monkeypatch):
    """Qwen2-VL's own top_k is 1: samples would all be the greedy answer."""
    vlm = small
    own = GenerationConfig(**{**vlm.model.generation_config.to_dict(), "top_k": 1, "top_p": 0.001, "do_sample": True})
    monkeypatch.setattr(vlm.model, "generation_config", own)
    greedy = vlm.ask(demo, "What?", max_new_tokens=8)
    sampled = [vlm.ask(demo, "What?", temperature=5.0, seed=seed, max_new_tokens=8).tokens for seed in range(4)]
    assert len({greedy.tokens, *sampled}) >= 3
    assert vlm.ask(demo, "What?", temperature=5.0, seed=1, top_k=1, max_new_tokens=8).tokens == greedy.tokens


@pytest.mark.parametrize(("stop", "text"), [(("K",), "36"), (("M", "6K"), "3"), (("36",), ""), (("no such",), "36KUM")])
def test_an_answer_ends_where_a_stop_stands(vlm, demo, stop, text):
    answer = vlm.ask(demo, QUESTION, stop=stop)
    assert answer.text == text
    assert len(answer.tokens) <= len(vlm.ask(demo, QUESTION).tokens)


def test_exactly_so_many_tokens_where_that_is_wanted(vlm, demo):
    prompt = vlm.prepare(demo, QUESTION)
    columns = prompt.tokens
    assert generate(vlm.model, prompt.inputs, 7, exactly=True).sequences.shape[1] == columns + 7
    assert generate(vlm.model, prompt.inputs, 7).sequences.shape[1] < columns + 7
    out = run_generate(vlm.model, prompt.inputs, fv.Generation(max_new_tokens=2).arguments(None))
    assert cache_in(out).get_seq_length() == columns + 1
