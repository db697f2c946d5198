"""A vision tower that overflows: the answers say so, at every door, and only those about its pictures."""

import copy

import numpy as np
import pytest
import torch

import foveate as fv

QUESTION, FEW = "What colour is the dog ?", {"max_new_tokens": 2}
METHODS = (None, "v2drop", "divprune", "mustdrop", "finalkv+v2drop:keep=0.5,0.3,0.1")


@pytest.fixture(scope="module")
def overflowing(small):
    """A copy whose tower overflows at white pictures, as float16 does where numbers grow too large."""
    model = copy.deepcopy(small.model)

    def overflow(embeddings, args, output):
        white = args[0].flatten(1).mean(dim=1) > 0.9  # (images,)
        return torch.where(white[:, None, None], output * float("inf"), output)

    model.model.vision_tower.embeddings.register_forward_hook(overflow)
    return fv.VLM(model, small.processor, "overflowing")


def picture(level):
    return np.full((336, 336, 3), level, np.uint8)


def says(answer):
    return any("NaN" in note for note in answer.notes)


@pytest.mark.filterwarnings("ignore:mustdrop does not meet")
@pytest.mark.parametrize("method", METHODS)
def test_an_answer_to_a_picture_that_overflows_the_tower_says_so(overflowing, method):
    options = {} if method is None else {"method": method}
    with pytest.warns(UserWarning, match="NaN"):
        white = overflowing.ask(picture(255), QUESTION, **options, **FEW)
    grey = overflowing.ask(picture(90), QUESTION, **options, **FEW)
    assert [says(white), says(grey)] == [True, False]
    assert sum("NaN" in note for note in white.to_dict()["notes"]) == 1


@pytest.mark.filterwarnings("ignore:The vision tower gave NaN")
@pytest.mark.parametrize("beams", [1, 2])
def test_only_the_samples_of_a_batch_that_overflow_say_so(overflowing, beams):
    pairs = [(picture(level), QUESTION) for level in (90, 255, 60, 255)]
    answers = list(overflowing.ask_many(pairs, method="v2drop", num_beams=beams, batch_size=4, **FEW))
    assert [says(answer) for answer in answers] == [False, True, False, True]
    assert ["NaN" in str(answer.prompt.notes) for answer in answers] == [False, True, False, True]  # rows have these


@pytest.mark.filterwarnings("ignore:The vision tower gave NaN")
def test_questions_after_a_look_and_choices_say_so_too(overflowing):
    white, grey = (overflowing.look(picture(level), method="v2drop") for level in (255, 90))
    for prefix, wanted in (white, True), (grey, False):
        answers = [prefix.ask(QUESTION, **FEW), *prefix.ask_many([QUESTION, "Why ?"], **FEW)]
        answers.append(prefix.ask(QUESTION, choices=["yes", "no"]))
        assert [says(answer) for answer in answers] == [wanted] * 4
    assert says(overflowing.ask(picture(255), QUESTION, choices=["yes", "no"]))


def test_a_prompt_without_pictures_says_nothing(overflowing):
    assert not says(overflowing.ask([], QUESTION, **FEW))
