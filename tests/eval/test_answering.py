import pytest
import torch
from PIL import Image

import foveate as fv
from foveate import embedded
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from foveate.eval.answering import First, answer, answer_about_one_picture, can_share, collate
from tests import models

INDEX = 900_000


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


def test_pictures_with_their_own_positions_are_not_shared():
    assert not can_share(models.tiny("qwen2_vl"), fv.V2Drop())
    assert can_share(models.tiny("llava"), fv.V2Drop())


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
