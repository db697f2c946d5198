"""Prompt and answer in one forward, as `docs/guides/dropping.md` tells: who reads the question reads the answer too."""

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.embedded import QUESTION, picture
from foveate.naming import parse

TOKENS = 6


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("fastv", True),
        ("cdpruner", True),
        ("vscan", True),
        ("v2drop+finalkv", True),
        ("divprune", False),
        ("v2drop", False),
    ],
)
def test_what_reads_the_question_reads_the_answer_so_far(name, differs):
    vlm = fv.load(device="cpu")
    model, inputs = vlm.model, dict(vlm.prepare(str(picture()), QUESTION).inputs)
    method = parse(name).with_budget(retention=1 / 3)
    length = inputs["input_ids"].shape[1]
    asked = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    asked |= {"return_dict_in_generate": True, "output_logits": True}
    with fv.drop(model, method):
        generated = model.generate(**inputs, **asked)
    answer, logits = generated.sequences[:, length:], torch.cat(generated.logits)
    whole = {**inputs, "input_ids": generated.sequences, "attention_mask": torch.ones_like(generated.sequences)}
    with torch.no_grad(), fv.drop(model, method):
        at_once = model(**whole, use_cache=False, logits_to_keep=TOKENS + 1).logits[0, :-1]
    with torch.no_grad(), fv.drop(model, method):
        prompt = model(**inputs, use_cache=True)
        behind = model(input_ids=answer[:, :-1], **with_cache(cache_in(prompt)))
    assert ((at_once - logits).abs().max() > 0.1) == differs
    apart = torch.cat((prompt.logits[0, -1:], behind.logits[0]))
    torch.testing.assert_close(apart, logits, atol=1e-4, rtol=0)
