"""Pictures and frames that are seen one by one are those of a prompt that shows all of them."""

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.ask.conversation import Conversation
from foveate.ask.growth import part_of
from foveate.ask.prompt import prepare

NEW = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 255, (84, 84, 3), dtype=np.uint8)) for _ in range(3)]


def assert_as_afresh(vlm, live, parts, question="What happens ?"):
    """The answer of a look that has grown, beside that of a prompt with its pictures and films."""
    conversation = Conversation((("user", (*parts, ("text", question))),))
    prompt = prepare(vlm, conversation)
    answer = live.ask(question, **NEW)
    assert torch.equal(answer.prompt.inputs["input_ids"], prompt.inputs["input_ids"])
    fresh = vlm.answer(prompt, live.method, generation=fv.Generation(**NEW))
    assert (answer.tokens, answer.retention, answer.spent) == (fresh.tokens, fresh.retention, fresh.spent)
    assert answer.flops == fresh.flops


@pytest.mark.parametrize("method", [None, "vidcom2"])
@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_pictures_one_by_one_are_all_at_once(folders, pictures, family, method):
    vlm = fv.load(folders[family], device="cpu")
    live = vlm.look(pictures[0], method=method)
    for picture in pictures[1:]:
        live = live.see(picture)
    parts = [part_of(vlm, picture, None, None, None) for picture in pictures]
    assert_as_afresh(vlm, live, parts)
    for place in range(3):
        left = live.forget(place)
        prompt = left.prompt("What happens ?")
        fresh = vlm.prepare([*pictures[:place], *pictures[place + 1 :]], "What happens ?")
        assert torch.equal(prompt.inputs["input_ids"], fresh.inputs["input_ids"])
        assert prompt.grids == fresh.grids
        assert prompt.cost() == fresh.cost()


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_frames_with_a_time_are_films_of_one_frame(folders, pictures, family):
    vlm = fv.load(folders[family], device="cpu")
    parts = [part_of(vlm, picture, at, None, None) for at, picture in enumerate(pictures)]
    assert [kind for kind, _ in parts] == ["video"] * 3
    live = vlm.look(parts[0][1], method="vidcom2")
    for at, picture in enumerate(pictures[1:], start=1):
        live = live.see(picture, at=at)
    assert_as_afresh(vlm, live, parts)
    assert live.forget(0).prompt("What ?").vision_tokens == 2 * live.prompt("What ?").vision_tokens // 3
