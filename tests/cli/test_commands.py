"""The commands end to end, on a tiny random model in a folder."""

import io
import json
import logging
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from inspect import currentframe
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from torch._inductor.exc import CppCompileError, InductorError
from transformers import LlavaConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from foveate import embedded
from foveate.cli.loading import Loaded, load
from foveate.cli.methods import Methods
from foveate.cli.options import ModelOptions
from foveate.cli.prompt import prepare, vision_sizes
from foveate.cli.race import race
from foveate.errors import InputError, UnsupportedError
from foveate.families.llava import Llava
from foveate.methods.uniform import Uniform
from foveate.registry import families, methods, presets
from foveate.video import Clip
from tests.cli.conftest import save_tiny_llava

QUESTION = ("--prompt", "What is this ?", "--max-new-tokens", 5)


@pytest.fixture
def ask(run, tiny_llava):
    """Run a command on the tiny model: exit code, stdout, stderr."""

    def call(command, *arguments):
        return run(command, *arguments, *QUESTION, "--model", tiny_llava)

    return call


def whole_answer(folder, picture):
    """What the model says by itself, with nothing of foveate's in between."""
    loaded = load(ModelOptions(model=str(folder)))
    image = Image.open(picture)
    inputs = loaded.processor(images=[image], text=["USER: <image> is What is this ? ASSISTANT:"], return_tensors="pt")
    with torch.inference_mode():
        ids = loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False, temperature=None)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


def test_generate_prints_the_answer_and_what_was_saved(ask, picture):
    code, out, err = ask("generate", picture)
    assert (code, err) == (0, "")
    for label in ("Question", "With v2drop", "Retention", "Stages", "FLOPs", "KV cache"):
        assert label in out
    assert "before layer 3: 36 to" in out
    assert "Full model" not in out


@pytest.mark.parametrize(
    ("method", "where", "left"),
    [("averagepool", "behind the projector: 36 to 12", 12.0), ("resize", "in the vision tower: 36 to 12", 12.0)],
)
def test_generate_says_where_before_the_decoder_tokens_left(ask, picture, method, where, left):
    code, out, _ = ask("generate", picture, "--method", method, "--budget", 12)
    assert code == 0
    assert where in out
    result = json.loads(ask("generate", picture, "--method", method, "--budget", 12, "--json")[1])
    assert result["mean_tokens"] == left
    prefill, everything = result["saved"]["prefill_flops"], result["saved"]["total_flops"]
    assert (everything < prefill - 0.05) == (method == "averagepool")  # whose tower costs what it always costs


@pytest.mark.parametrize("method", sorted(methods()))
def test_every_method_answers_and_is_counted(ask, picture, method):
    code, out, _ = ask("generate", picture, "--method", method, "--retention", 0.5, "--json")
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


def test_full_adds_the_untouched_models_answer_and_a_time_ratio(ask, picture, tiny_llava):
    code, out, _ = ask("generate", picture, "--full", "--pairs", 2, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["full"]["token_ids"] == whole_answer(tiny_llava, picture)
    assert result["full"]["kv_bytes"] == result["kv_bytes_whole"]
    assert result["agreement"]["identical"] == (result["token_ids"] == result["full"]["token_ids"])
    ratio = result["time"]["ratio_to_full"]["v2drop"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert ratio["rounds"] == result["time"]["control"]["rounds"] == 2


def test_what_is_timed_really_drops(tiny_llava, picture):
    loaded = load(ModelOptions(model=str(tiny_llava)))
    inputs = prepare(loaded, [Image.open(picture)], "What is this ?")
    seen = []

    class Watched(Uniform):
        def cut(self, view):
            seen.append(view.layer)
            return super().cut(view)

    found = race(loaded, inputs, {"watched": Watched(layers=(2, 5), keep=(0.5, 0.5))}, new_tokens=1, pairs=2)
    assert seen == [2, 5] * 3  # two rounds and the warm-up
    assert found.new_tokens == 1
    assert set(found.ratios) == {"watched"}


def test_keeping_everything_answers_as_the_full_model(ask, picture):
    _, out, _ = ask("generate", picture, "--retention", 1, "--full", "--pairs", 2, "--json")
    result = json.loads(out)
    assert result["agreement"]["identical"] is True
    assert result["saved"]["kv_bytes"] == 0


def test_full_is_also_told_to_people(ask, picture):
    _, out, _ = ask("generate", picture, "--full", "--pairs", 2)
    for text in ("Full model", "Time ratio", "2 interleaved pairs", "95 % interval", "full model against itself"):
        assert text in " ".join(out.split())


def test_the_figure_is_written_and_never_over_another(ask, picture, tmp_path):
    path = tmp_path / "kept.png"
    code, out, _ = ask("generate", picture, "--figure", path)
    assert code == 0
    assert "Picture" in out
    with Image.open(path) as drawn:
        assert drawn.width > drawn.height > 100
    before = path.read_bytes()
    code, _, err = ask("generate", picture, "--figure", path)
    assert code == 1
    assert "exists already" in err
    assert path.read_bytes() == before
    assert ask("generate", picture, "--figure", path, "--force")[0] == 0


def test_an_answer_is_not_lost_when_its_figure_cannot_be_drawn(ask, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(Llava, "boxes", lambda self, modality, given, lengths: [None] * len(lengths))
    code, out, err = ask("generate", picture, "--figure", tmp_path / "kept.png", "--out", tmp_path / "a.json", "--json")
    assert code == 1
    assert "cannot be drawn" in err
    assert json.loads(out) == json.loads((tmp_path / "a.json").read_text())
    assert not (tmp_path / "kept.png").exists()


def test_several_images_go_into_one_question(ask, picture, tmp_path):
    Image.new("RGB", (50, 80), "teal").save(second := tmp_path / "second.png")
    code, out, _ = ask("generate", picture, second, "--json", "--figure", tmp_path / "both.png")
    assert code == 0
    result = json.loads(out)
    assert result["vision_tokens"] == [36, 36]
    assert result["trace"]["vision_tokens"] == [72]
    with Image.open(tmp_path / "both.png") as drawn:
        assert drawn.height > 700  # a row an image


def test_the_picture_matters(ask, picture, tmp_path):
    Image.new("RGB", (84, 84), (250, 0, 250)).save(other := tmp_path / "other.png")
    first, second = (json.loads(ask("generate", path, "--json")[1]) for path in (picture, other))
    assert first["token_ids"] != second["token_ids"] or first["trace"]["stages"] != second["trace"]["stages"]


def test_random_draws_by_its_seed(ask, picture):
    def kept(seed):
        _, out, _ = ask("generate", picture, "--method", "random", "--seed", seed, "--json")
        return json.loads(out)["trace"]["stages"][0]["kept"]

    assert kept(1) == kept(1) != kept(2)


def test_a_preset_runs_on_a_model_of_its_depth(ask, picture):
    _, out, _ = ask("generate", picture, "--method", "v2drop/llava-1.5-7b/192", "--json")
    assert json.loads(out)["setting"]["keep"] == [0.5, 0.3, 0.0]


def test_attention_and_dtype_reach_the_model(ask, picture):
    _, out, _ = ask("generate", picture, "--attention", "eager", "--dtype", "bfloat16", "--device", "cpu", "--json")
    model = json.loads(out)["model"]
    assert (model["attention"], model["dtype"], model["device"]) == ("eager", "bfloat16", "cpu")


def test_a_model_without_chat_template_is_asked_with_placeholders_first(run, picture, tmp_path):
    folder = save_tiny_llava(tmp_path / "plain", layers=4, template=None)
    code, out, _ = run("generate", picture, *QUESTION, "--model", folder, "--json", "--retention", 0.6)
    assert code == 0
    assert json.loads(out)["vision_tokens"] == [36]


def test_compare_shows_the_full_model_and_every_method_there_is(ask, picture):
    code, out, err = ask("compare", picture, "--pairs", 2)
    assert (code, err) == (0, "")
    for name in ("full model", *methods()):
        assert name in out
    assert "100.0%" in out
    assert "timed against itself" in " ".join(out.split())


def test_compare_json_has_a_record_a_method_at_one_budget(ask, picture, tmp_path):
    figure = tmp_path / "all.png"
    names = ("--method", "v2drop", "--method", "random", "--method", "v2drop/llava-1.5-7b/128")
    code, out, _ = ask("compare", picture, *names, "--budget", 18, "--pairs", 2, "--json", "--figure", figure)
    assert code == 0
    result = json.loads(out)
    assert [row["name"] for row in result["methods"]] == ["v2drop", "random", "v2drop/llava-1.5-7b/128"]
    assert [round(row["mean_tokens"]) for row in result["methods"][:2]] == [18, 18]
    assert set(result["time"]["ratio_to_full"]) == {row["name"] for row in result["methods"]}
    with Image.open(figure) as drawn:
        assert drawn.height > 3 * 400


def test_methods_models_and_presets_list_what_the_registry_has(run):
    code, out, _ = run("methods", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)["methods"]} == set(methods())
    code, out, _ = run("models", "--json")
    assert code == 0
    assert {row["model_type"] for row in json.loads(out)["families"]} == set(families())
    code, out, _ = run("presets", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["presets"]}
    assert set(rows) == set(presets())
    assert rows["v2drop/llava-1.5-7b/192"]["mean_tokens"] == pytest.approx(193.8, abs=0.1)
    assert rows["v2drop/qwen2-vl-7b/22.6%"]["mean_tokens"] is None
    assert rows["v2drop/qwen2-vl-7b/22.6%"]["retention"] == pytest.approx(0.226, abs=0.002)


def test_the_lists_for_people_name_everything(run):
    assert all(name in run("methods")[1] for name in methods())
    assert all(name in run("models")[1] for name in families())
    assert all(name in run("presets")[1] for name in presets())


def test_presets_can_be_narrowed(run):
    code, out, _ = run("presets", "onevision", "--json")
    assert code == 0
    assert {row["name"].split("/")[1] for row in json.loads(out)["presets"]} == {"llava-onevision-7b"}
    code, _, err = run("presets", "nothing-like-this")
    assert code == 2
    assert "No preset's name contains" in err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--method", "v3drop"], 2, "No method 'v3drop'. There are: "),
        (["--method", "v2drop/llava-1.5-7b/99"], 2, "No preset"),
        (["--budget", "1"], 2, "its floor is"),
        (["--budget", "37"], 2, "at most at the full count"),
        (["--set", "layers=40,41", "--set", "keep=0.5,0.5"], 2, "the decoder has layers 0 to 31"),
        (["--device", "cuda:77"], 2, "--device cuda:77 is not available"),
        (["--device", "meta"], 2, "--device meta is not available"),
        (["--device", "gpu"], 2, "--device gpu is not available"),
        (["--max-new-tokens", "0"], 2, "at least one token"),
        (["--pairs", "1"], 2, "needs two or more"),
        (["--figure", "nowhere/kept.png"], 1, "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_stderr(run, tiny_llava, picture, arguments, code, says):
    got, out, err = run("generate", picture, "--model", tiny_llava, "--prompt", "What is this ?", *arguments)
    assert got == code
    assert out == ""
    assert err.startswith("foveate: ")
    assert says in err
    assert err.count("\n") == 1


def test_wrong_usage_is_said_before_any_file_is_read(run, tmp_path):
    code, _, err = run("generate", tmp_path / "no-picture.png", "--prompt", "x", "--retention", 2)
    assert code == 2
    assert "a share lies in (0, 1]" in err


def test_a_bad_picture_is_refused_before_the_model_is_loaded(run, tmp_path):
    (path := tmp_path / "empty.png").touch()
    code, _, err = run("generate", path, "--prompt", "x", "--model", tmp_path / "no-model-either")
    assert code == 1
    assert "empty.png is empty" in err


def test_an_animation_is_read_with_a_note_on_stderr(ask, tmp_path):
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(path := tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    code, out, err = ask("generate", path, "--json")
    assert code == 0
    json.loads(out)
    assert "only the first is read" in err


def test_a_question_needs_a_prompt_and_another_model_needs_an_image(run, tiny_llava, picture):
    code, _, err = run("generate", picture)
    assert (code, "--prompt" in err) == (2, True)
    code, _, err = run("generate", "--model", tiny_llava, "--prompt", "x")
    assert (code, "Which picture?" in err) == (2, True)


def test_a_model_that_is_not_there_is_named(run, picture, tmp_path):
    code, _, err = run("generate", picture, *QUESTION, "--model", tmp_path / "nothing")
    assert code == 1
    assert f"There is no folder {tmp_path / 'nothing'}" in err
    assert err.count("\n") == 1


def test_a_hub_id_that_cannot_be_reached_is_one_line(run, picture, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    code, _, err = run("generate", picture, *QUESTION, "--model", "nobody/has-this-model")
    assert code == 1
    assert "Model 'nobody/has-this-model' cannot be loaded: " in err
    assert err.count("\n") == 1


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_processor_that_needs_a_missing_package_says_which(run, picture, tmp_path):
    config = Qwen2VLConfig(
        text_config={"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 16,
                     "num_attention_heads": 2, "num_key_value_heads": 2,
                     "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2},
    )  # fmt: skip
    Qwen2VLForConditionalGeneration(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    code, _, err = run("generate", picture, *QUESTION, "--model", tmp_path)
    assert code == 1
    assert "torchvision" in err.lower()


def test_images_are_told_apart_by_what_stands_between_them():
    config = LlavaConfig(image_token_index=3)

    def sizes(ids, images):
        return vision_sizes(config, torch.tensor([ids]), images)

    assert sizes([1, 3, 3, 9, 3, 3, 3, 2], 2) == (2, 3)
    assert sizes([3, 3, 3, 3], 2) == (4,)  # nothing between them: only their sum is known
    with pytest.raises(UnsupportedError, match="without any vision token"):
        sizes([1, 2], 1)


def test_weights_that_are_no_safetensors_are_refused(run, picture, tiny_llava, tmp_path):
    shutil.copytree(tiny_llava, folder := tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    code, _, err = run("generate", picture, *QUESTION, "--model", folder)
    assert code == 1
    assert "safetensors" in err


def test_remote_code_is_never_run(run, picture, tiny_llava, tmp_path):
    shutil.copytree(tiny_llava, folder := tmp_path / "remote")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    code, _, err = run("generate", picture, *QUESTION, "--model", folder)
    assert code == 1
    assert "cannot be loaded" in err
    assert not (tmp_path / "ran").exists()


def test_a_family_that_is_not_supported_is_refused_before_its_weights_are_read(run, picture, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "idefics2"}))
    code, _, err = run("generate", picture, *QUESTION, "--model", tmp_path)
    assert code == 1
    assert "No family for model_type 'idefics2'. Supported: " in err
    assert "foveate.drop(model, method, family='generic') serves it in Python" in err
    assert "To add one: docs/guides/new-family.md" in err


def test_ctrl_c_ends_with_130_and_one_line(run, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Methods, "run", interrupt)
    assert run("methods") == (130, "", "foveate: interrupted.\n")


@pytest.mark.parametrize("package", ["tyro", "torch"])
def test_ctrl_c_while_a_package_loads_ends_as_quietly(package):
    program = f"""
import signal, sys
class CtrlC:
    def find_spec(name, *_):
        if name == {package!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, CtrlC)
from foveate.cli import main
sys.exit(main(["generate"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "foveate: interrupted.\n")


def test_a_kernel_that_cannot_be_compiled_ends_in_one_line(run, monkeypatch):
    def compile_flex(self):
        raise InductorError(CppCompileError(["g++", "main.cpp"], "main.cpp:1140: error: not declared"), currentframe())

    monkeypatch.setattr(Methods, "run", compile_flex)
    said = "foveate: torch cannot compile an attention kernel here: CppCompileError: C++ compile error. "
    assert run("methods") == (1, "", said + "Take one that needs no compiling: --attention sdpa.\n")


@pytest.fixture(scope="module")
def mixed_up(tmp_path_factory, tiny_llava):
    """The tiny model with a processor for smaller pictures; and with a tokenizer of more words."""
    folder = tmp_path_factory.mktemp("mixed-up")
    save_tiny_llava(folder / "small", side=56, layers=1)
    shutil.copytree(embedded.path(), folder / "words")
    for place in ("small", "words"):
        for name in ("config.json", "model.safetensors"):
            shutil.copy(tiny_llava / name, folder / place / name)
    return folder


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("small", r"Input image size \(56\*56\) doesn't match model \(84\*84\)"),
        ("words", r"token \d+ is not among its 64"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "compare", ("tune", "--retention", 0.5)])
def test_a_processor_of_another_model_ends_in_one_line_that_names_both(run, mixed_up, picture, command, place, why):
    command, *flags = (command,) if isinstance(command, str) else command
    code, out, err = run(command, picture, *QUESTION[:2], *flags, "--model", mixed_up / place)
    assert (code, out) == (1, "")
    both = rf"\(LlavaProcessor\) does not fit its model \(LlavaForConditionalGeneration\): {why}"
    assert re.search(rf"^foveate: The processor of .*{place} {both}\. Take .*\n\Z", err, re.MULTILINE)


def test_a_processor_of_another_model_ends_an_evaluation_in_one_line(run, mixed_up, tmp_path):
    asked = ("--tasks", "colour", "--questions", 2, "--budget", 12, "--method", "v2drop", "--jobs", 1)
    code, out, err = run("eval", *asked, "--cache", tmp_path, "--model", mixed_up / "small")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "(LlavaProcessor) does not fit its model (LlavaForConditionalGeneration): Input image size" in err


def test_what_the_untouched_model_takes_is_no_misfit(ask, picture, monkeypatch):
    def broken(*_):
        raise ValueError("a mistake of our own")

    monkeypatch.setattr("foveate.cli.setup.Setup.cost", broken)
    with pytest.raises(ValueError, match="a mistake of our own"):
        ask("generate", picture)


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is there")
def test_a_kernel_that_is_not_installed_ends_in_one_line(run):
    code, out, err = run("generate", "--attention", "flash_attention_2")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the package for FlashAttention2 doesn't seem to be installed. Install it, or take another" in err


def test_a_method_that_cannot_meet_the_budget_is_shown_with_its_floor_among_the_others(ask, picture):
    code, out, _ = ask("compare", picture, "--budget", 3, "--pairs", 2, "--json")
    assert code == 0
    result = json.loads(out)
    refused = {row["name"]: row["reason"] for row in result["infeasible"]}
    assert {row["name"] for row in result["methods"]} | set(refused) == set(methods())
    assert "its floor is 4.3 tokens" in refused["mustdrop"]
    assert "visiondrop" in {row["name"] for row in result["methods"]}
    code, _, err = ask("compare", picture, "--budget", 3, "--method", "mustdrop", "--method", "visiondrop")
    assert (code, "floor is" in err) == (2, True)


def test_a_video_of_one_frame_that_a_processor_does_not_take_is_one_line():
    """As Qwen3-VL's does not."""

    class Processor:
        image_token, tokenizer, video_processor = "<image>", SimpleNamespace(bos_token=None), object()

        def __call__(self, **_):
            raise ValueError("t:1 must be larger than temporal_factor:2\nYou can try: nothing")

    clip = Clip(Path("one.mp4"), np.zeros((1, 4, 6, 3), np.uint8), (0.0,), 0.0, 0.1, 10.0)
    says = r"refuses 1 frame of 6 x 4 pixels: t:1 must .*:2\. Of one frame, give the model a picture\.$"
    with pytest.raises(InputError, match=says):
        prepare(Loaded("m", None, Processor()), [clip], "What ?")


def test_a_picture_that_grows_beyond_memory_is_one_line():
    class Processor:
        image_token, tokenizer = "<image>", SimpleNamespace(bos_token=None)

        def __call__(self, **_):
            raise MemoryError

    with pytest.raises(InputError, match="60000 x 1 pixels: out of memory"):
        prepare(Loaded("tiny", None, Processor()), [Image.new("RGB", (60000, 1))], "x")


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
        assert run("generate", picture, *QUESTION, "--model", folder)[::2] == (0, "")
        code, _, err = run("generate", picture, picture, *QUESTION, "--model", folder)
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
