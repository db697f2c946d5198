"""foveate's embedded model in mlx-vlm keeps and answers what it keeps and answers on transformers."""

import os

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_vlm.generate.ar import generate_step
from PIL import Image
from transformers import AutoTokenizer, LlavaForConditionalGeneration

import foveate as fv
import foveate_mlx
from foveate import embedded
from foveate.eval.held_out import questions
from tests import models

NEW = 5
PICTURES = 20 if os.environ.get("FOVEATE_TESTS") else 5


@pytest.fixture(scope="module")
def stacks():
    """The model in both stacks, in float32, and its tokenizer."""
    there = LlavaForConditionalGeneration.from_pretrained(embedded.path(), dtype=torch.float32).eval()
    return models.embedded_model(), there, AutoTokenizer.from_pretrained(embedded.path())


def prompt_of(question, tokenizer):
    """Ids and pixels: (1, columns) and (1, 3, 336, 336)."""
    text = f"USER: {'<image>' * 576}\n{question.text} ASSISTANT:"
    pixels = (np.asarray(question.media(), np.float32) / 255 - 0.5) / 0.5
    return np.array([tokenizer(text)["input_ids"]]), pixels.transpose(2, 0, 1)[None]


def on_mlx(model, ids, pixels, method, retention):
    with foveate_mlx.drop(model, method, retention=retention) as trace:
        steps = generate_step(mx.array(ids), model, mx.array(pixels), None, max_tokens=NEW, temperature=0.0)
        first, tokens = None, []
        for token, logprobs in steps:
            first = np.array(logprobs) if first is None else first
            tokens.append(token)
            if token == 2:
                break
    return trace.sources[0].tolist(), tokens, first


def on_transformers(model, ids, pixels, method, retention):
    inputs = {"input_ids": torch.from_numpy(ids), "pixel_values": torch.from_numpy(pixels)}
    with fv.drop(model, method, retention=retention) as trace, torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    return trace.stages[-1].kept[0].tolist(), tokens, out.logits[0][0].log_softmax(-1).numpy()


@pytest.mark.parametrize("method", ["divprune", "vidcom2:positions=reindex"])
def test_both_stacks_keep_the_same_tokens_and_answer_alike(stacks, method):
    here, there, tokenizer = stacks
    right = 0
    pool = questions(embedded.TASKS, PICTURES, seeds=(5,))
    for question in pool:
        prompt = prompt_of(question, tokenizer)
        kept, tokens, first = on_mlx(here, *prompt, method, 1 / 3)
        kept_there, tokens_there, first_there = on_transformers(there, *prompt, method, 1 / 3)
        assert kept == sorted(kept_there)
        assert tokens == tokens_there[: len(tokens)]
        np.testing.assert_allclose(first, first_there, atol=2e-3)
        right += tokenizer.decode(tokens, skip_special_tokens=True).strip() in question.labels
    assert right >= len(pool) - 1


def test_a_cache_of_8_bits_reads_the_text(stacks):
    model, _, tokenizer = stacks
    pixels = (np.asarray(Image.open(embedded.picture()), np.float32) / 255 - 0.5) / 0.5
    text = f"USER: {'<image>' * 576}\n{embedded.QUESTION} ASSISTANT:"
    ids, pixels = mx.array([tokenizer(text)["input_ids"]]), mx.array(pixels.transpose(2, 0, 1)[None])
    options = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}
    with foveate_mlx.drop(model, "divprune", tokens=192):
        steps = generate_step(ids, model, pixels, None, max_tokens=NEW, temperature=0.0, **options)
        assert tokenizer.decode([token for token, _ in steps], skip_special_tokens=True).strip() == embedded.ANSWER
