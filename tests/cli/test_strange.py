"""Commands say once, on stderr, that the embedded model knows only drawings, where a picture is something else."""

import numpy as np
import pytest
from PIL import Image

import foveate as fv
from foveate.embedded import STRANGE
from foveate.embedded.scenes import scene
from foveate.tuning.parts import by_picture, notes_on

ASKED = ("--method", "v2drop", "--max-new-tokens", 1)


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def words_of(command, folder, tmp_path):
    prompt = ("--prompt", "What is it?", *ASKED)
    if command == "batch":
        return command, folder, tmp_path / "out", *prompt
    if command == "eval":
        cached = ("--retention", 0.5, "--no-baselines", "--workers", 1, "--cache", tmp_path / "cache")
        return command, "--samples", folder, *prompt, *cached
    return command, *sorted(folder.iterdir()), *prompt


@pytest.mark.parametrize("command", ["generate", "compare", "batch", "eval"])
@pytest.mark.parametrize("is_strange", [True, False], ids=["strange", "own"])
def test_a_command_says_it_of_other_pictures_alone(command, is_strange, run, tmp_path):
    (folder := tmp_path / "in").mkdir()
    for seed in range(2):
        image = noise(seed) if is_strange else Image.fromarray(scene("demo", seed).image)
        image.save(folder / f"{seed}.jpg")
    code, _, err = run(*words_of(command, folder, tmp_path))
    assert (code, err.count(STRANGE)) == (0, is_strange), err


def test_tunings_say_it():
    vlm = fv.load()
    prompts = [vlm.prepare(noise(seed), "What is it?") for seed in range(2)]
    assert STRANGE in notes_on(by_picture(prompts))
