"""Many questions about one picture: one prefill, and the answers that each question alone gets."""

import pytest
import torch
from transformers import MistralConfig

import foveate as fv
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from tests import models
from tests.ask.conftest import INDEX, prompt_of, random_vlm
from tests.invariants.settings import EXAMPLES, works
from tests.tiny import TEXT

SHARING = {
    "idefics3", "internvl", "llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3", "smolvlm",
    "video_llava", "vipllava",
}  # fmt: skip
BOTH_WAYS = {"gemma3", "gemma4", "paligemma"}
"""Families whose prompts are seen both ways, and read token types for that."""


@pytest.fixture(scope="module")
def prompts(vlm, scenes):
    questions = one_per_task(scene("held-out", INDEX), "held-out", INDEX)[:4]
    return [vlm.prepare(scenes[0], question.question) for question in questions]


def settings(model):
    yield None
    for kind in (fv.V2Drop, fv.VisionDrop, fv.AveragePool, fv.Resize):
        yield kind.for_budget(model, tokens=96)


def test_one_prefill_for_many_questions_gives_what_each_alone_gets(vlm, prompts):
    generation = fv.Generation(max_new_tokens=24)
    for method in settings(vlm.model):
        assert vlm.can_share(method)
        together = vlm.answer_sharing(prompts, method, generation=generation, first=True)
        for prompt, shared in zip(prompts, together, strict=True):
            alone = vlm.answer(prompt, method, generation=generation, first=True)
            assert (shared.text, shared.tokens, shared.prompt) == (alone.text, alone.tokens, prompt)
            assert (shared.vision_tokens, shared.spent, shared.flops) == (576, alone.spent, alone.flops)
            torch.testing.assert_close(shared.first, alone.first, atol=1e-4, rtol=1e-4)


def test_the_picture_is_encoded_once_for_all_questions(vlm, prompts):
    seen = []
    handle = vlm.model.model.vision_tower.register_forward_hook(lambda *_: seen.append(True))
    try:
        vlm.answer_sharing(prompts, generation=fv.Generation(max_new_tokens=2))
    finally:
        handle.remove()
    assert len(seen) == 1


def asked(vlm):
    """Three questions of different lengths about one picture."""
    found = []
    for length in (3, 5, 9):
        question = torch.tensor([[11, 12, 13, 14, 15, 16, 17, 18, 19][:length]])
        sample = models.batch(vlm.name, ["ti"])
        whole = torch.cat((sample["input_ids"], question), dim=1)
        sample |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        found.append(prompt_of(vlm, sample | models.TINY[vlm.name].extra(whole)))
    return found


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_prefill_is_shared_where_the_family_says_so(family):
    vlm = random_vlm(family)
    assert vlm.can_share(None) == vlm.can_share(fv.V2Drop()) == (family in SHARING)
    assert fv.families()[family].shares_prefix == (family not in {*BOTH_WAYS, "qwen3_5", "qwen3_5_moe"})


@pytest.mark.parametrize("name", [None, "v2drop-0", "random-0", "visiondrop-0", "averagepool-0"])
@pytest.mark.parametrize("family", sorted(SHARING))
def test_a_shared_prefill_gives_every_question_its_own_answer(family, name, monkeypatch):
    if name is not None and not works(name, family):
        return
    vlm = random_vlm(family, monkeypatch)
    prompts, method = asked(vlm), None if name is None else EXAMPLES[name]
    generation = fv.Generation(max_new_tokens=5)
    together = vlm.answer_sharing(prompts, method, generation=generation, first=True)
    for prompt, shared in zip(prompts, together, strict=True):
        alone = vlm.answer(prompt, method, generation=generation, first=True)
        assert (shared.tokens, shared.spent) == (alone.tokens, alone.spent)
        torch.testing.assert_close(shared.first, alone.first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted({"qwen2_vl", "qwen3_5"} | BOTH_WAYS))
def test_sharing_is_refused_where_the_answers_would_be_others(family):
    vlm = random_vlm(family)
    with pytest.raises(fv.UnsupportedError, match=f"'{family}' cannot share a prefill"):
        vlm.answer_sharing(asked(vlm))


def test_sharing_is_refused_where_the_decoder_has_windows():
    """They count columns, and padding stands between the picture and a short question."""
    config = models.TINY["mistral3"].config()
    config.text_config = MistralConfig(**TEXT, sliding_window=16)
    assert not fv.VLM(models.made_of("mistral3", config), None).can_share(None)


def test_sharing_is_refused_where_a_method_reads_the_question(vlm, prompts):
    with pytest.raises(fv.UnsupportedError, match="cannot share"):
        vlm.answer_sharing(prompts, fv.MustDrop.for_budget(vlm.model, tokens=96))
