"""Pictures that run as one batch come to what each comes to alone."""

from dataclasses import replace
from itertools import chain, cycle, islice
from unittest.mock import ANY

import pytest
import torch

import foveate as fv
from foveate.tuning import forcing
from foveate.tuning.forcing import answered, outcomes, predictions
from foveate.tuning.parts import About, grouped
from foveate.tuning.trials import TOKENS, batched
from tests.models import tiny
from tests.tune.pictures import pictures_of, question

FAMILIES = ("gemma3", "gemma4", "idefics3", "internvl", "llava", "llava_onevision", "mistral3", "qwen2_vl", "qwen3_5")
METHODS = {
    "full": None,
    "v2drop": fv.V2Drop(layers=(2, 3), keep=(0.4, 0.5)),
    "fastv": fv.FastV(layers=(3,), keep=(0.3,)),
    "random": fv.Random(layers=(0, 2), keep=(0.5, 0.5)),
    "visiondrop": fv.VisionDrop(retention=0.4, positions="reindex"),
}
ANSWERS = [(3, 4, 5), (6, 7)]
PAIRS = [(family, name) for at, family in enumerate(FAMILIES) for name in islice(cycle(METHODS), 2 * at, 2 * at + 2)]
"""Two methods a family."""


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_pictures_in_one_batch_come_to_what_each_comes_to_alone(family, name):
    model, method = tiny(family), METHODS[name]
    pictures = pictures_of(family)
    answers = [ANSWERS] * len(pictures)
    together = predictions(model, pictures, answers, method)
    for about, found in zip(pictures, together, strict=True):
        (alone,) = predictions(model, [about], [ANSWERS], method)
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_where_copies_would_be_large_fewer_questions_go_on_together(monkeypatch):
    model, pictures = tiny("llava"), pictures_of("llava")
    rows = []
    resumed = forcing.resumed
    monkeypatch.setattr(forcing, "resumed", lambda *args, places: rows.append(places) or resumed(*args, places=places))
    method = METHODS["v2drop"]
    every = predictions(model, pictures, [ANSWERS] * 3, method)
    assert sorted(rows.pop()) == [0, 0, 1, 1, 2, 2]
    monkeypatch.setattr(forcing, "ROOM", 1)
    few = predictions(model, pictures, [ANSWERS] * 3, method)
    assert len(rows) == 6
    for one, other in zip(chain(*every), chain(*few), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["full", "v2drop", "fastv"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_lack_of_memory_halves_batches_down_to_a_question_and_changes_nothing(family, name):
    model, pictures = tiny(family), pictures_of(family)
    wanted = [answered(model, about, 4) for about in pictures]
    method = METHODS[name]
    roomy = outcomes(model, pictures, wanted, method)
    sizes = []

    def narrow(module, arguments, named):
        size = len(named["input_ids"])
        if size > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(size)

    with model.register_forward_pre_hook(narrow, with_kwargs=True):
        assert [answered(model, about, 4) for about in pictures] == [
            [replace(one, likeliest=ANY) for one in targets] for targets in wanted
        ]
        for one, other in zip(chain(*roomy), chain(*outcomes(model, pictures, wanted, method)), strict=True):
            assert one.agrees == other.agrees
            assert one.divergence == pytest.approx(other.divergence, abs=1e-4)
    assert sizes


def test_only_alike_prompts_share_a_batch():
    model = tiny("llava")
    words = ("tit", "tit", "ttit", "tit", "tiit", "tiit")
    pictures = grouped(model, [question("llava", word, seed, 8, 9) for seed, word in enumerate(words)])
    found = list(batched(model, METHODS["v2drop"], pictures, 5))
    assert [len(one) for one in found] == [2, 1, 1, 2]
    assert [about for one in found for about in one] == list(pictures)


def test_a_batch_has_so_many_pictures_and_tokens_at_most():
    model = tiny("llava")
    (about, *_) = pictures_of("llava")
    tokens = about.samples[0].vision_tokens
    many = [About(str(place), about.samples[:1] * (1 + TOKENS // tokens // 3)) for place in range(7)]
    assert [len(one) for one in batched(model, METHODS["v2drop"], many, 3)] == [3, 3, 1]
    # A method that reads the question runs the picture with every one.
    assert max(len(one) for one in batched(model, METHODS["fastv"], many, 7)) == 2
