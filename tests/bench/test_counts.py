"""What a prompt and a decode step do must not grow unseen: a guard against slowness that times nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.counts import COUNTS, METHODS, PROMPTS, versions

ROOT = Path(__file__).parents[2]
PLACES = "foveate/engine/samples.py read_samples: aten._to_copy"
GRIDS = "foveate/families/qwen_vl.py Qwen2VL.encode: aten._to_copy"


@pytest.fixture(scope="module")
def found():
    if json.loads(COUNTS.read_text())["versions"] != versions():
        pytest.skip(f"counts.json was counted with other versions than {versions()}")
    command = [sys.executable, "-m", "tests.bench.counts", "--print"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)["counts"]


def own(counts):
    """Where foveate's own code waits for the device."""
    return {place: times for place, times in counts["waits"].items() if place.startswith("foveate/")}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_what_a_prompt_and_a_step_do_is_as_committed(found, prompt, name):
    committed = json.loads(COUNTS.read_text())["counts"][prompt][name]
    changed = {
        f"{call} {figure}": (committed[call][figure], value)
        for call, figures in found[prompt][name].items()
        for figure, value in figures.items()
        if value != committed[call][figure]
    }
    assert not changed, "If that is meant (fewer is better): python -m tests.bench.counts"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_no_decode_step_waits_for_the_device(found, prompt, name):
    assert own(found[prompt][name]["decode"]) == {}


@pytest.mark.parametrize("name", ["keep-all", "random", "v2drop", "visiondrop"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_waits_once_to_know_where_its_vision_tokens_are(found, prompt, name):
    reads_grids = prompt == "qwen2_vl" and name == "visiondrop"
    assert own(found[prompt][name]["prefill"]) == {PLACES: 1} | ({GRIDS: 1} if reads_grids else {})


@pytest.mark.parametrize("prompt", PROMPTS)
def test_keep_all_adds_nothing_to_a_layer_or_a_step(found, prompt):
    whole, kept = found[prompt]["untouched"], found[prompt]["keep-all"]
    assert kept["prefill"]["per_layer"] == whole["prefill"]["per_layer"]
    assert kept["decode"] == whole["decode"]


@pytest.mark.parametrize("prompt", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("name", ["random", "v2drop"])
def test_a_step_on_even_lengths_runs_the_untouched_models_operators(found, prompt, name):
    whole, dropped = found[prompt]["untouched"]["decode"], found[prompt][name]["decode"]
    assert dropped["per_layer"] == whole["per_layer"]
    assert dropped["made"] < whole["made"]
