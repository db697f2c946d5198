import pytest
import torch
from PIL import Image
from transformers import MistralConfig

import foveate as fv
from foveate import embedded
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from foveate.eval.answering import First, answer, answer_about_one_picture, can_share, collate
from tests import models
from tests.invariants.settings import EXAMPLES, works
from tests.tiny import TEXT

INDEX = 900_000
SHARING = {
    "idefics3", "internvl", "llava", "llava_next", "llava_next_video", "llava_onevision", "mistral3", "smolvlm",
    "video_llava", "vipllava",
}  # fmt: skip
BOTH_WAYS = {"gemma3", "gemma4", "paligemma"}
"""Families whose prompts are seen both ways, and read token types for that."""


@pytest.fixture(scope="module")
def loaded():
    return embedded.load()


@pytest.fixture(scope="module")
def samples(loaded):
    _, processor = loaded
    one = scene("held-out", INDEX)
    texts = [f"USER: <image>\n{q.question} ASSISTANT:" for q in one_per_task(one, "held-out", INDEX)[:4]]
    picture = Image.fromarray(one.image)
    return [processor(images=[picture], text=[text], return_tensors="pt") for text in texts]


def settings(model):
    yield None
    for kind in (fv.V2Drop, fv.VisionDrop, fv.AveragePool, fv.Resize):
        yield kind.for_budget(model, tokens=96)


def test_one_prefill_for_many_questions_gives_what_each_alone_gets(loaded, samples):
    model, _ = loaded
    for method in settings(model):
        assert can_share(model, method)
        together = answer_about_one_picture(model, samples, method, max_new_tokens=24)
        for sample, shared in zip(samples, together, strict=True):
            (alone,) = answer(model, sample, method, max_new_tokens=24)
            assert shared.tokens == alone.tokens
            assert (shared.vision_tokens, shared.spent, shared.flops) == (576, alone.spent, alone.flops)
            torch.testing.assert_close(shared.logs, alone.logs, atol=1e-4, rtol=1e-4)


def test_a_batch_gives_what_each_alone_gets(loaded, samples):
    model, _ = loaded
    method = fv.MustDrop.for_budget(model, tokens=96)
    assert not can_share(model, method)
    for given, sample in zip(answer(model, collate(samples, 0), method), samples, strict=True):
        (alone,) = answer(model, sample, method)
        assert (given.tokens, given.spent, given.flops) == (alone.tokens, alone.spent, alone.flops)


def test_the_cost_is_that_of_the_prompt(loaded, samples):
    model, _ = loaded
    text = samples[0]["input_ids"].shape[1] - 576
    (given,) = answer(model, samples[0], None)
    assert given.flops == fv.cost(model.config, text_tokens=text, vision_tokens=576).total_flops
    (given,) = answer(model, samples[0], fv.Resize.for_budget(model, tokens=96))
    assert given.flops < 0.2 * fv.cost(model.config, text_tokens=text, vision_tokens=576).total_flops


def asked(family):
    """Three questions of different lengths about one picture."""
    ids = {length: torch.tensor([[11, 12, 13, 14, 15, 16, 17, 18, 19][:length]]) for length in (3, 5, 9)}
    found = []
    for question in ids.values():
        sample = models.batch(family, ["ti"])
        whole = torch.cat((sample["input_ids"], question), dim=1)
        sample |= {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        found.append(sample | models.TINY[family].extra(whole))
    return found


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_prefill_is_shared_where_the_family_says_so(family):
    model = models.tiny(family)
    assert can_share(model, None) == can_share(model, fv.V2Drop()) == (family in SHARING)
    assert fv.families()[family].shares_prefix == (family not in {*BOTH_WAYS, "qwen3_5", "qwen3_5_moe"})


@pytest.mark.parametrize("name", [None, "v2drop-0", "random-0", "visiondrop-0", "averagepool-0"])
@pytest.mark.parametrize("family", sorted(SHARING))
def test_a_shared_prefill_gives_every_question_its_own_answer(family, name):
    if name is not None and not works(name, family):
        return
    model, samples, method = models.tiny(family), asked(family), None if name is None else EXAMPLES[name]
    settings = {"max_new_tokens": 5, **models.NO_PLACEHOLDERS}
    together = answer_about_one_picture(model, samples, method, **settings)
    for sample, shared in zip(samples, together, strict=True):
        (alone,) = answer(model, sample, method, **settings)
        assert (shared.tokens, shared.spent) == (alone.tokens, alone.spent)
        torch.testing.assert_close(shared.logs, alone.logs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", sorted({"qwen2_vl", "qwen3_5"} | BOTH_WAYS))
def test_sharing_is_refused_where_the_answers_would_be_others(family):
    with pytest.raises(fv.UnsupportedError, match=f"'{family}' cannot share a prefill"):
        answer_about_one_picture(models.tiny(family), asked(family), None)


def test_sharing_is_refused_where_the_decoder_has_windows():
    """They count columns, and padding stands between the picture and a short question."""
    config = models.TINY["mistral3"].config()
    config.text_config = MistralConfig(**TEXT, sliding_window=16)
    model = models.made_of("mistral3", config)
    assert not can_share(model, None)


def test_sharing_is_refused_where_a_method_reads_the_question(loaded, samples):
    model, _ = loaded
    with pytest.raises(fv.UnsupportedError, match="cannot share"):
        answer_about_one_picture(model, samples, fv.MustDrop.for_budget(model, tokens=96))


def test_divergence_is_the_exact_one_on_a_small_vocabulary_and_a_lower_bound_on_a_large_one():
    for size in (40, 3000):
        mine, theirs = torch.randn(2, size, generator=torch.Generator().manual_seed(size)).mul(2).log_softmax(-1)
        exact = float((mine.exp() * (mine - theirs)).sum())
        first = First.of(mine)
        found = first.divergence(First.of(theirs, first.ids))
        assert first.divergence(First.of(mine, first.ids)) == pytest.approx(0, abs=1e-4)
        if size == 40:
            assert found == pytest.approx(exact, rel=1e-3)
        else:
            assert 0.5 * exact < found < exact
