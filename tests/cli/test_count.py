"""`foveate count`: vision tokens and costs without weights."""

import json

import pytest
from PIL import Image

import foveate as fv
from foveate.errors import UnsupportedError
from foveate.video import decoding
from tests.films import film


@pytest.fixture
def bare(tiny_llava, tmp_path):
    """The folder of a model without its weights."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in tiny_llava.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_counts_are_those_of_the_loaded_model(run, tiny_llava, bare, picture):
    code, out, err = run("count", picture, picture, "--model", bare, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    prompt = fv.load(str(tiny_llava), device="cpu").prepare([picture, picture], "What is this?")
    assert told["media"] == [36, 36]
    assert told["vision_tokens"] == prompt.vision_tokens == 72
    assert told["text_tokens"] == prompt.text_tokens
    assert (told["flops"], told["kv_bytes"]) == (prompt.cost().model_flops, prompt.cost().kv_bytes)


def test_a_padded_size_is_said_beside_the_files_own(run, bare, tmp_path):
    Image.new("RGB", (120, 60)).save(path := tmp_path / "wide.png")
    assert "padded to 120 x 120" in " ".join(run("count", path, "--model", bare, "--fit", "pad")[1].split())
    assert "padded to" not in run("count", path, "--model", bare)[1]


def test_where_pixels_do_not_make_the_tokens_a_budget_is_advised(run, bare, picture):
    code, out, err = run("count", picture, "--model", bare, "--tokens", 9)
    assert (code, out) == (1, "")
    assert "LlavaProcessor has no max_pixels" in err


def test_a_model_without_weights_answers_nothing(bare, picture):
    vlm = fv.load(str(bare), weights=False)
    for asking in (
        lambda: vlm.ask(picture, "What is this ?"),
        lambda: vlm.ask(picture, "What is this ?", method="v2drop"),
        lambda: vlm.look(picture),
        lambda: list(vlm.ask_many([(picture, "What is this ?")])),
    ):
        with pytest.raises(UnsupportedError, match="without its weights"):
            asking()


def test_a_method_s_plan_is_what_its_run_does(run, tiny_llava, bare, picture):
    asked = ("count", picture, "--model", bare, "--method", "v2drop", "--budget", 12)
    code, out, err = run(*asked, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)["method"]
    answer = fv.load(str(tiny_llava), device="cpu").ask(
        picture, "What is this?", method="v2drop", tokens=12, max_new_tokens=1
    )
    assert told["tokens"] == [count for (count,) in answer.trace.latest.per_layer]
    _, out, _ = run(*asked)
    for stage in answer.trace.stages:
        assert f"before decoder layer {stage.layer}" in out
        assert f"{stage.before[0]} → {stage.after[0]}" in out


@pytest.mark.parametrize("asked", [{}, {"frames": 4}, {"fps": 2}, {"frames": 4, "fps": 2}, {"fit": "pad", "frames": 4}])
def test_a_film_is_counted_by_its_container(run, tiny_llava, tmp_path, monkeypatch, asked):
    path = film(tmp_path / "clip.mp4", size=(112, 64))
    prompt = fv.load(str(tiny_llava), weights=False).prepare([path], "What is this?", **asked)
    monkeypatch.setattr(decoding, "_Decoder", None)
    flags = [word for name, value in asked.items() for word in (f"--{name}", value)]
    code, out, _ = run("count", path, "--model", tiny_llava, *flags, "--json")
    assert code == 0
    told = json.loads(out)
    assert (told["vision_tokens"], told["text_tokens"]) == (prompt.vision_tokens, prompt.text_tokens)
    assert told["videos"] == prompt.to_dict()["videos"]
    assert told["flops"] == prompt.cost().model_flops
