"""What a prompt and a decode step do must not grow unseen: a guard against slowness that times nothing.

Prompts wait for the device a few times, however many samples and pictures they have, but once a picture for a method
that reads a number of it in Python; see `tests.bench.waits`.
"""

import json

import pytest

from tests.bench.counts import COUNTS, METHODS, PROMPTS, versions
from tests.bench.waits import PROMPTS as TEXTS, RUNS
from tests.forked import said_by

PLACES = "foveate/engine/prompt_samples.py read_samples: aten._to_copy"
GRIDS = "foveate/families/qwen_vl.py Qwen2VL.encode: aten._to_copy"
TOWER = "foveate/families/qwen_vl.py Qwen2VL._run_tower: aten._to_copy"
SAMPLES = "engine/prompt_samples.py read_samples"
MASKS = {"engine/extensions/encoding/reducer.py count_masks": 1, "engine/cutting.py count_images": 2}
"""A mask before the projector, and one before each of two layers."""
OF_PICTURES = {"mustdrop": "core/merge.py average_windows", "prumerge": "methods/prumerge.py PruMerge._choose"}
"""Methods that read a number of each picture: of windows, and of outliers."""
READ = {
    "gemma4": "families/gemma.py Gemma4.encode",
    "llava_next": "families/vision.py picture_sizes",
    "mistral3": "families/vision.py picture_sizes",
    "qwen2_5_vl": "families/qwen_vl.py Qwen2VL.encode",
}
"""Where a tower's reader needs the grids of pictures of any size, and reads them before the tower runs."""
BY_PROMPT = {"internvl": "families/tiles.py runs", "smolvlm": "families/tiles.py SmolVLM.image_lengths"}
"""Where only the prompt tells which features are of one image."""
PROGRAM = """
import json
import torch
from tests.bench.counting import count, waits_in
from tests.bench import counts, far, waits
far.register()

def each(work):
    found = waits_in(work, far.Far())
    return [place.split(": ")[1] for place, times in found.items() for _ in range(times)]

x = far.FarTensor(torch.tensor([3, 0, 5]))
assert str(x.device) == "far:0"
assert each(lambda: x + 1) == []
assert each(lambda: x[torch.tensor([0, 2])]) == []
assert each(lambda: x.sum().item()) == ["aten._local_scalar_dense"]
assert each(lambda: bool((x > 2).any())) == ["aten._local_scalar_dense"]
assert each(lambda: x.tolist()) == ["aten._to_copy"]
assert each(lambda: x.nonzero()) == ["aten.nonzero"]
assert each(lambda: x[x > 0]) == ["aten.index.Tensor"]
assert each(lambda: x.cpu()) == ["aten._to_copy"]
assert each(lambda: x.repeat_interleave(x)) == ["aten.repeat_interleave.Tensor"]
assert each(lambda: x.repeat_interleave(x, output_size=8)) == []
assert each(lambda: torch.arange(3, device=x.device) + x) == []
assert each(lambda: torch.tensor([1, 2], device=x.device)) == []
with torch.no_grad(), far.Far():
    assert ((x * 2).cpu() == torch.tensor([6, 0, 10])).all()
place = next(iter(count(lambda: x.tolist(), (), far.Far()).waits))
assert place[0] == "<string>", place
reading = [waits.of_reading(method) for method in waits.READING]
print(json.dumps([counts.counts(), [waits.waits(*run) for run in waits.RUNS], reading]))
"""


@pytest.fixture(scope="module")
def program():
    """What a process of its own prints, since torch learns of the device for good."""
    return json.loads(said_by(PROGRAM))


@pytest.fixture(scope="module")
def found(program):
    if json.loads(COUNTS.read_text())["versions"] != versions():
        pytest.skip(f"counts.json was counted with other versions than {versions()}")
    return program[0]


@pytest.fixture(scope="module")
def waits(program):
    return dict(zip(RUNS, program[1], strict=True))


def own(waits):
    """Where foveate's own code waits for the device."""
    return {place: times for place, times in waits.items() if place.startswith("foveate/")}


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
    assert own(found[prompt][name]["decode"]["waits"]) == {}


@pytest.mark.parametrize("name", ["keep-all", "random", "v2drop", "visiondrop"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_waits_once_to_know_where_its_vision_tokens_are(found, prompt, name):
    sizes = {}
    if prompt == "qwen2_vl":
        sizes = {GRIDS if name == "visiondrop" else TOWER: 1}
    assert own(found[prompt][name]["prefill"]["waits"]) == {PLACES: 1} | sizes


def test_a_tower_of_packed_pictures_waits_once_where_the_model_waits_in_every_block(found):
    tower = "transformers/models/qwen2_vl/modeling_qwen2_vl.py VisionAttention.forward"
    whole, dropped = (found["qwen2_vl"][name]["prefill"]["waits"] for name in ("untouched", "v2drop"))
    assert sum(times for place, times in whole.items() if place.startswith(tower)) > 1
    assert not [place for place in dropped if place.startswith(tower) or "vision_utils" in place]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_keep_all_adds_nothing_to_a_layer_or_a_step(found, prompt):
    whole, kept = found[prompt]["untouched"], found[prompt]["keep-all"]
    assert kept["prefill"]["per_layer"] == whole["prefill"]["per_layer"]
    assert kept["decode"] == whole["decode"]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", ["random", "v2drop", "fastv", "divprune"])
def test_a_layer_that_neither_scores_nor_cuts_does_what_it_does_untouched_but_for_the_last(found, prompt, name):
    whole, dropped = found[prompt]["untouched"]["prefill"], found[prompt][name]["prefill"]
    assert dropped["per_layer"][4] == whole["per_layer"][4]
    assert dropped["per_layer"][5] <= whole["per_layer"][5] + 3


@pytest.mark.parametrize("prompt", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("name", ["random", "v2drop"])
def test_a_step_on_even_lengths_runs_the_untouched_models_operators(found, prompt, name):
    whole, dropped = found[prompt]["untouched"]["decode"], found[prompt][name]["decode"]
    assert dropped["per_layer"] == whole["per_layer"]
    assert dropped["made"] < whole["made"]


def test_where_steps_read_less_a_prompt_waits_once_more_and_no_step(program):
    for prompt, *steps in program[2]:
        assert own(prompt) == {PLACES: 1, "foveate/engine/extensions/step_reads.py _count: aten._to_copy": 1}
        assert [own(step) for step in steps] == [{}, {}, {}]


@pytest.mark.parametrize(("family", "name", "prompt"), RUNS)
def test_a_place_waits_once_whatever_the_batch(waits, family, name, prompt):
    expected = {SAMPLES: 1}
    if family in BY_PROMPT:
        expected[BY_PROMPT[family]] = 1
    if name in ("visiondrop", "masks", *OF_PICTURES) and family in READ:
        expected[READ[family]] = 1
    elif family == "qwen2_5_vl":
        expected["families/qwen_vl.py Qwen2VL._run_tower"] = 1
    if name == "masks":
        expected |= MASKS
    places = own(waits[family, name, prompt])
    seen = {place.removeprefix("foveate/").split(":")[0]: times for place, times in places.items()}
    of_pictures = OF_PICTURES.get(name)
    if of_pictures in seen:  # where a picture's tokens are a grid
        expected[of_pictures] = min(seen[of_pictures], "".join(TEXTS[prompt][0]).count("i"))
    assert seen == expected
    if family == "llava" and name in OF_PICTURES:
        assert of_pictures in seen
