"""Prompts wait for the device a few times, however many samples and pictures they have; see `tests.bench.waits`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.waits import RUNS

SAMPLES = "engine/samples.py read_samples"
COUNTS = "engine/encode.py cuts_of"
READ = {
    "gemma4": "families/gemma.py Gemma4._grids",
    "llava_next": "families/vision.py picture_sizes",
    "mistral3": "families/vision.py picture_sizes",
    "qwen2_5_vl": "families/qwen_vl.py Qwen2VL.encode",
}
"""Where a tower's reader needs the grids of pictures of any size, and reads them before the tower runs."""
PROMPTS = {"internvl": "families/tiles.py runs", "smolvlm": "families/idefics.py SmolVLM.image_lengths"}
"""Where only the prompt tells which features are of one image."""


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, "-m", "tests.bench.waits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    return dict(zip(RUNS, json.loads(done.stdout), strict=True))


def own(waits):
    return {place.removeprefix("foveate/").split(":")[0]: times for place, times in waits.items()}


@pytest.mark.parametrize(("family", "name", "prompt"), RUNS)
def test_a_place_waits_once_whatever_the_batch(found, family, name, prompt):
    expected = {SAMPLES: 1}
    if family in PROMPTS:
        expected[PROMPTS[family]] = 1
    if name in ("visiondrop", "mustdrop") and family in READ:
        expected[READ[family]] = 1
    seen = own(found[family, name, prompt])
    if name == "mustdrop" and seen.get(COUNTS) == 1:  # where a picture's tokens are a grid
        expected[COUNTS] = 1
    assert seen == expected
    if family == "llava" and name == "mustdrop":
        assert COUNTS in seen
