"""What is known of a call of `generate` before it runs."""

import pytest
import torch
from transformers import GenerationConfig

from foveate.engine.generating import Generating

IDS = torch.zeros(1, 5, dtype=torch.int64)


@pytest.mark.parametrize(("asked", "beams"), [({}, 3), ({"num_beams": None}, 3), ({"num_beams": 2}, 2)])
def test_beams_are_those_of_the_call_or_of_its_config(asked, beams):
    assert Generating.of({"input_ids": IDS, **asked}, GenerationConfig(num_beams=3)).beams == beams


def test_a_call_ends_behind_its_prompt_and_the_new_tokens():
    of_config = GenerationConfig(max_length=40)
    assert Generating.of({"input_ids": IDS, "max_new_tokens": 7}, of_config).most == 12
    assert Generating.of({"input_ids": IDS}, of_config).most == 40
