"""What may be loaded: a checkpoint whose weights are exactly the model's."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import foveate as fv
from foveate import embedded
from foveate.ask import loading
from foveate.ask.loading import load, reloading
from foveate.eval.held_out import picture_or_clip
from foveate.video import read
from tests.films import film
from tests.models import tiny

NORM = "model.language_model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def weights():
    return load_file(embedded.path() / "model.safetensors")


def saved(folder: Path, weights) -> str:
    """The embedded model's folder with other weights."""
    shutil.copytree(embedded.path(), folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda name, weight: {}, rf"1 missing \({NORM}\).*Download it again"),
        (lambda name, weight: {f"{name}_old": weight}, rf"{NORM}\); 1 unexpected \(.*_old"),
        (lambda name, weight: {name: weight[:5].clone()}, rf"another shape \({NORM}: \[5\] instead of \[\d+\]\)"),
    ],
)  # fmt: skip
def test_weights_that_are_missing_or_others_are_refused_by_name(weights, tmp_path, change, says):
    name = next(name for name in weights if name.endswith("layers.1.input_layernorm.weight"))
    left = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(fv.InputError, match=says):
        load(saved(tmp_path / "model", left | change(name, weights[name])), device="cpu")


def test_tied_weights_and_what_transformers_ignores_are_no_damage(weights, tmp_path):
    """A tied head is not stored, and old checkpoints hold position ids that newer models make themselves."""
    assert not any("lm_head" in name for name in weights)
    ignored = weights | {"vision_tower.embeddings.position_ids": torch.arange(5)[None]}
    model = load(saved(tmp_path / "old", ignored), device="cpu").model
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_experts_that_do_not_fit_together_are_refused(tmp_path):
    """transformers stacks the experts of a layer as it loads them, and raises where their shapes differ."""
    tiny("glm4v_moe").save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    name = next(key for key in whole if ".experts.0." in key)
    save_file(whole | {name: whole[name][:-1].clone()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(fv.InputError, match="together"):
        load(str(tmp_path), device="cpu")


def test_the_model_for_films_has_144_tokens_a_frame_and_the_same_weights():
    films, pictures = fv.load("embedded-films", device="cpu"), fv.load("embedded", device="cpu")
    clip = picture_or_clip(3, is_film=True)
    assert films.prepare(clip, "Which object appears first?").sizes == (8 * 144,)
    assert pictures.model.config.vision_config.image_size == 336
    own, other = films.model.state_dict(), pictures.model.state_dict()
    assert own.keys() - other.keys() == {"model.image_newline"}
    differ = {name for name in other if own[name].shape != other[name].shape or not torch.equal(own[name], other[name])}
    assert differ == {name for name in other if "position_embedding" in name}
    answer = films.ask(clip, "Which object appears first?", method="v2drop", retention=0.5)
    assert answer.vision_tokens == 8 * 144
    assert answer.retention == pytest.approx(0.5, abs=0.02)


def test_a_picture_is_a_film_of_one_frame_and_films_are_of_one_length():
    films = fv.load("embedded-films", device="cpu")
    frame = Image.effect_noise((168, 168), 60).convert("RGB")
    assert films.prepare([frame] * 3, "Which object appears first?").sizes == (144, 144, 144)
    assert films.prepare([], "Which object appears first?").sizes == ()
    with pytest.raises(fv.InputError, match="differ in their number"):
        films.prepare([frame, picture_or_clip(3, is_film=True)], "Which object appears first?")


def test_the_embedded_film_model_takes_the_frames_that_it_was_made_for(tmp_path):
    path = film(tmp_path / "film.mp4", count=60)
    films = fv.load("embedded-films", device="cpu")
    message = {"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "What?"}]}
    for prompt in (films.prepare(path, "What?"), films.prepare(messages=[message]), films.prepare(read(path), "What?")):
        assert prompt.vision_tokens == 8 * 144
    assert films.prepare(path, "What?", frames=12).vision_tokens == 12 * 144
    assert films.prepare(read(path, frames=10), "What?").vision_tokens == 10 * 144


def test_graphs_are_refused_where_there_are_none_before_weights_are_read(tmp_path):
    shutil.copytree(embedded.path(), tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    for name in ("embedded", str(tmp_path / "bare")):
        with pytest.raises(fv.SettingError, match="CUDA"):
            load(name, device="cpu", cuda_graphs=True)
    vlm = load(device="cpu")
    with pytest.raises(fv.SettingError, match="CUDA"):
        fv.VLM(vlm.model, vlm.processor, cuda_graphs=True)
    assert "cuda_graphs" not in vlm.card.to_dict()
    assert not reloading(vlm)().cuda_graphs


@pytest.mark.usefixtures("graphs_on_cpu")
def test_another_process_runs_graphs_too():
    vlm = load(device="cpu", cuda_graphs=True)
    assert vlm.card.to_dict()["cuda_graphs"]
    assert reloading(vlm)().cuda_graphs


@pytest.mark.parametrize(
    ("computes", "dtype", "told"),
    [(True, "auto", 1), (True, "float32", 0), (True, "bfloat16", 0), (False, "auto", 0)],
)
def test_a_cpu_that_computes_bfloat16_is_told_of_once_where_nobody_chose_float32(
    weights, tmp_path, monkeypatch, computes, dtype, told
):
    monkeypatch.setattr("foveate.core.cpu.computes_bfloat16", lambda: computes)
    name = saved(tmp_path / "mine", weights)
    loading._warn_of_float32.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        load(device="cpu")  # of the models in this package nobody is told
        assert warned == []
        for _ in range(2):
            load(name, device="cpu", dtype=dtype)
    assert [one.filename for one in warned] == [__file__] * told
    assert all("dtype bfloat16 may be faster" in str(one.message) for one in warned)
