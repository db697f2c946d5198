"""The commands end to end, on a tiny random model in a folder."""

import io
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.cli.compare import METHODS
from foveate.cli.setup import load_vlm
from foveate.families.proved import PROVED
from foveate.families.vision import PictureLayout
from foveate.naming import parse
from foveate.plain.flags import ModelOptions
from foveate.registry import families, methods, presets
from tests.cli.conftest import QUESTION
from tests.tuning.presets import preset_of


def whole_answer(folder, picture):
    """What the model says by itself, with nothing of foveate's in between."""
    loaded = load_vlm(ModelOptions(model=str(folder)))
    image = Image.open(picture)
    inputs = loaded.processor(images=[image], text=["USER: <image> is What is this ? ASSISTANT:"], return_tensors="pt")
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False, temperature=None)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_generate_prints_the_answer_and_what_was_saved(ask, picture):
    code, out, err = ask("generate", picture)
    assert (code, err) == (0, "foveate: no budget given: using --retention 1/3\n")
    for label in ("Question", "With v2drop", "Retention", "Stages", "FLOPs", "KV cache"):
        assert label in out
    assert "before layer 3: 36 to" in out
    assert "Full model" not in out


AT_SCHEDULES = ("random as v2drop", "random as divprune", "random as vidcom2")
COMPARED = {"v2drop", "divprune", "vidcom2", "averagepool", "resize", *AT_SCHEDULES}


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("resize", "vision tower: 36 to 12"),
        ("visiondrop+v2drop:metric=l1", "layer 2"),
        ("v2drop+finalkv", "decoding: "),
    ],
)
def test_a_method_is_counted_and_where_it_drops_is_said(ask, picture, method, where):
    asked = ("generate", picture, "--method", method, "--retention", "1/3")
    assert where in " ".join(ask(*asked)[1].split())
    code, out, _ = ask(*asked, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["retention"] == pytest.approx(result["cost"]["retention"])


def test_generate_json_is_all_there_is_on_stdout_and_its_figures_fit_together(ask, picture, tmp_path):
    code, out, _ = ask("generate", picture, "--json", "--out", tmp_path / "result.json", "--retention", 0.5)
    assert code == 0
    result = json.loads(out)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["vision_tokens"] == [36]
    assert result["retention"] == pytest.approx(0.5, abs=0.02)
    assert result["cost"]["retention"] == pytest.approx(result["retention"])
    assert result["cost"]["kv_lengths"] == [layer[0] for layer in result["trace"]["kv_lengths"]]
    # Measured at the end: after the prompt, one slot a token but the last. Two heads of 16, keys and values, float32.
    slots = sum(result["cost"]["kv_lengths"]) + 32 * (len(result["token_ids"]) - 1)
    assert result["kv_bytes"] == slots * 2 * 2 * 16 * 4
    assert result["kv_bytes_whole"] == 32 * (36 + result["text_tokens"] + len(result["token_ids"]) - 1) * 2 * 2 * 16 * 4
    assert result["saved"]["kv_bytes"] == pytest.approx(1 - result["kv_bytes"] / result["kv_bytes_whole"])
    assert result["setting"]["method"] == "v2drop"
    assert 0.3 < result["saved"]["prefill_flops"] < 0.7


def test_compare_has_the_untouched_models_answer_and_a_time_ratio(ask, picture, tiny_llava):
    words = ("compare", picture, "--method", "v2drop", "--pairs", 2)
    code, out, _ = ask(*words, "--json")
    assert code == 0
    result = json.loads(out)
    (ours,) = result["methods"]
    assert result["full"]["token_ids"] == whole_answer(tiny_llava, picture)
    assert result["full"]["kv_bytes"] == ours["kv_bytes_whole"]
    assert ours["agreement"]["identical"] == (ours["token_ids"] == result["full"]["token_ids"])
    ratio = result["time"]["ratio_to_full"]["v2drop"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert ratio["rounds"] == result["time"]["control"]["rounds"] == 2
    assert "timed against itself" in " ".join(ask(*words)[1].split())


def test_the_figure_is_written_and_never_over_another(ask, picture, tmp_path):
    path = tmp_path / "kept.png"
    code, out, _ = ask("generate", picture, "--figure", path)
    assert code == 0
    assert "Figure" in out
    with Image.open(path) as drawn:
        assert drawn.width > drawn.height > 100
    before = path.read_bytes()
    code, _, err = ask("generate", picture, "--figure", path)
    assert code == 1
    assert "exists already" in err
    assert path.read_bytes() == before
    assert ask("generate", picture, "--figure", path, "--force")[0] == 0


def test_an_answer_is_not_lost_when_its_figure_cannot_be_drawn(ask, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(PictureLayout, "boxes", None)
    code, out, err = ask("generate", picture, "--figure", tmp_path / "kept.png", "--out", tmp_path / "a.json", "--json")
    assert code == 1
    assert "cannot be drawn" in err
    assert json.loads(out) == json.loads((tmp_path / "a.json").read_text())
    assert not (tmp_path / "kept.png").exists()


def test_compare_json_has_a_record_a_method_at_one_budget(ask, picture, tmp_path):
    figure = tmp_path / "all.png"
    names = ("--method", "v2drop", "--method", "random", "--method", "v2drop/llava-1.5-7b/128")
    code, out, _ = ask("compare", picture, *names, "--budget", 18, "--pairs", 2, "--json", "--figure", figure)
    assert code == 0
    result = json.loads(out)
    preset = "v2drop/llava-1.5-7b/128"
    expected = ["v2drop", "random as v2drop", preset, f"random as {preset}"]
    assert [row["name"] for row in result["methods"]] == expected
    assert [round(row["mean_tokens"]) for row in result["methods"][:2]] == [18, 18]
    assert set(result["time"]["ratio_to_full"]) == {row["name"] for row in result["methods"]}
    with Image.open(figure) as drawn:
        assert drawn.height > 4 * 170  # the picture and three methods
        assert max(drawn.size) < 1800


def test_methods_models_and_presets_list_what_the_registry_has(run):
    code, out, _ = run("methods", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)["methods"]} == set(methods())
    code, out, _ = run("models", "--json")
    assert code == 0
    assert {row["model_type"] for row in json.loads(out)["families"]} == set(families())
    assert {row["model_type"] for row in json.loads(out)["proved"]} == set(PROVED)
    assert (Path(json.loads(out)["embedded"]["folder"]) / "config.json").is_file()
    code, out, _ = run("presets", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["presets"]}
    assert set(rows) == set(presets())
    assert rows["v2drop/llava-1.5-7b/192"]["mean_tokens"] == pytest.approx(193.8, abs=0.1)
    assert rows["v2drop/qwen2-vl-7b/22.6%"]["mean_tokens"] is None
    assert rows["v2drop/qwen2-vl-7b/22.6%"]["retention"] == pytest.approx(0.226, abs=0.002)


def test_a_method_that_cannot_meet_the_budget_is_shown_with_its_floor_among_the_others(ask, picture):
    code, out, _ = ask("compare", picture, "--budget", 3, "--pairs", 2, "--json")
    assert code == 0
    result = json.loads(out)
    refused = {row["name"]: row["reason"] for row in result["infeasible"]}
    shown = {row["name"] for row in result["methods"]}
    assert {name.partition(" as ")[0] for name in shown} | set(refused) == set(METHODS)
    assert "its floor is 11.89%, 4.3 tokens" in refused["v2drop"]
    assert "divprune" in {row["name"] for row in result["methods"]}
    code, _, err = ask("compare", picture, "--budget", 3, "--method", "mustdrop", "--method", "visiondrop")
    assert (code, "floor is" in err) == (2, True)


def test_a_prompt_longer_than_the_model_was_made_for_is_noted_in_our_words(run, tiny_llava, picture, tmp_path):
    folder = shutil.copytree(tiny_llava, tmp_path / "short")
    for name, key in (("config.json", "max_position_embeddings"), ("tokenizer_config.json", "model_max_length")):
        told = json.loads((folder / name).read_text())
        (told["text_config"] if name == "config.json" else told)[key] = 60
        (folder / name).write_text(json.dumps(told))
    heard = []
    listener = logging.Handler()
    listener.emit = heard.append
    logging.getLogger("transformers").addHandler(listener)
    try:
        assert run("generate", picture, *QUESTION, "--model", folder, "--retention", 0.5)[::2] == (0, "")
        code, _, err = run("generate", picture, picture, *QUESTION, "--model", folder, "--retention", 0.5)
    finally:
        logging.getLogger("transformers").removeHandler(listener)
    assert code == 0
    assert re.fullmatch(r"foveate: the prompt has 8\d tokens and this model was made for 60: the answer .*\n", err)
    assert heard == []


def test_no_answer_is_lost_where_stderr_takes_nothing(ask, tmp_path, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            if text:
                raise OSError(28, "No space left on device")
            return 0

    still, other = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))
    still.save(path := tmp_path / "two.gif", save_all=True, append_images=[other])
    monkeypatch.setattr("sys.stderr", Full())
    code, out, _ = ask("generate", path)
    assert code == 0
    assert "With v2drop" in out


def test_several_questions_are_answered_from_one_look(run, tiny_llava, picture, tmp_path):
    words = ("What is this ?", "How many ?", "Where ?")
    flags = [part for question in words for part in ("--prompt", question)]
    settings = ("--model", tiny_llava, "--max-new-tokens", 5)
    code, out, _ = run("generate", picture, *flags, *settings, "--json", "--figure", tmp_path / "kept.png")
    answers = json.loads(out)["answers"]
    assert code == 0
    assert [answer["prompt"] for answer in answers] == list(words)
    assert len({answer["looked"] for answer in answers}) == 1
    for question, answer in zip(words, answers, strict=True):
        alone = json.loads(run("generate", picture, "--prompt", question, *settings, "--json")[1])
        assert (answer["answer"], answer["retention"]) == (alone["answer"], alone["retention"])
    assert (tmp_path / "kept.png").exists()
    out = run("generate", picture, *flags, *settings)[1]
    assert [out.count(question) for question in words] == [1, 1, 1]
    assert "once: " in out


def test_questions_that_share_no_look_are_told_so(run, tiny_llava, picture):
    flags = ("--prompt", "What ?", "--prompt", "How ?", "--model", tiny_llava, "--max-new-tokens", 2)
    code, out, _ = run("generate", picture, *flags, "--method", "fastv")
    assert (code, "share no prefill" in out) == (0, True)


@pytest.mark.parametrize("kind", ["tuned", "own"])
def test_a_preset_file_is_taken_wherever_a_preset_is(tmp_path, kind):
    """What `foveate tune` writes, and what `Method.to_dict` gives."""
    path, method = tmp_path / "mine.json", fv.V2Drop(layers=(2, 4, 5), keep=(0.5, 0.3, 0.0))
    values = preset_of(method).to_dict() if kind == "tuned" else method.to_dict()
    path.write_text(json.dumps(values))
    assert fv.preset(str(path)) == parse(str(path)) == method
