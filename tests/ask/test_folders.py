"""A damaged model folder ends in one line that names the file, whatever the packages below raise."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import foveate as fv
from tests.cli.conftest import save_tiny_llava

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS, INDEX, PART = "model.safetensors", "model.safetensors.index.json", "part.safetensors"
TEMPLATE = "chat_template.jinja"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model of two layers that nothing is wrong with."""
    return save_tiny_llava(tmp_path_factory.mktemp("sound"), layers=2)


@pytest.fixture
def folder(sound, tmp_path):
    """A copy of it to damage."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def load(folder):
    return fv.load(str(folder), device="cpu")


def refused(folder, says):
    """It is refused in one line that says this."""
    with pytest.raises(fv.InputError, match=says) as error:
        load(folder)
    line = str(error.value)
    assert line.startswith(f"Model {str(folder)!r} cannot be loaded: ")
    assert "\n" not in line
    assert len(line) < 1000


def change(file, **values):
    """Other values in a file of JSON."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def sharded(folder, part=PART, **index):
    """The weights as one part, with an index that names this one."""
    (folder / WEIGHTS).rename(folder / PART)
    places = dict.fromkeys(load_file(folder / PART), part)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places} | index))


# -- what is seen before anything is loaded -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        (WEIGHTS, POINTER, "model.safetensors is a git-lfs pointer, .* Fetch it: git lfs pull"),
        ("tokenizer.json", POINTER, "tokenizer.json is a git-lfs pointer"),
        (TEMPLATE, POINTER, "chat_template.jinja is a git-lfs pointer"),
        ("config.json", "3", "config.json must hold a JSON object; got 3"),
        ("config.json", "[" * 100_000, "config.json is not valid JSON: maximum recursion"),
        ("generation_config.json", "{", "generation_config.json is not valid JSON"),
        ("processor_config.json", "[1]", r"processor_config.json must hold a JSON object; got \[1\]"),
        ("tokenizer_config.json", "null", "tokenizer_config.json must hold a JSON object; got null"),
        ("preprocessor_config.json", "\x00", "preprocessor_config.json is not valid JSON"),
    ],
)
def test_a_damaged_file_is_named(folder, file, content, says):
    (folder / file).write_text(content)
    refused(folder, says)


@pytest.mark.parametrize("file", ["tokenizer_config.json", TEMPLATE, WEIGHTS])
def test_a_folder_in_the_place_of_a_file_is_named(folder, file):
    (folder / file).unlink()
    (folder / file).mkdir()
    refused(folder, f"{file} is not a file")


# -- safetensors only, and only those of the folder -----------------------------------------------------------


def test_an_index_that_names_pickled_weights_is_refused(folder):
    sharded(folder, "pytorch_model.bin")
    torch.save(load_file(folder / PART), folder / "pytorch_model.bin")
    refused(folder, "index.json names 'pytorch_model.bin', and only safetensors are read")


def test_an_index_that_leads_out_of_the_folder_is_refused(folder):
    outside = folder.parent / "outside.safetensors"
    shutil.copy(folder / WEIGHTS, outside)
    sharded(folder, f"../{outside.name}")
    refused(folder, r"names '../outside.safetensors', and weights must lie in the model's folder")
    (folder / PART).rename(folder / WEIGHTS)
    sharded(folder, str(outside))
    refused(folder, "weights must lie in the model's folder")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"a": 5}}, "names 5, and only safetensors"),
        ({"weight_map": ["a"]}, '"weight_map"'),
        ({"weight_map": {}}, '"weight_map"'),
        ({"metadata": 5}, '"metadata"'),
        ({"weight_map": {"a": "nosuch.safetensors"}}, "there is no nosuch.safetensors in its folder"),
        ({"weight_map": {"a": "a" * 5000 + ".safetensors"}}, r"names 'a{79}…, and weights must"),
    ],
)
def test_an_index_that_is_none_is_refused(folder, index, says):
    sharded(folder, **index)
    refused(folder, says)


def test_a_part_that_was_not_fetched_is_named(folder):
    sharded(folder)
    (folder / PART).write_text(POINTER)
    refused(folder, "part.safetensors is a git-lfs pointer")


def test_weights_that_are_a_link_out_of_the_folder_are_refused(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere.safetensors")
    refused(folder, "model.safetensors is a link that leaves the model's folder")


def test_an_adapter_in_a_pickle_is_refused(folder):
    torch.save({}, folder / "adapter_model.bin")
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    refused(folder, "config.json names 'adapter_model.bin', and only safetensors are read")


def test_an_index_of_the_hub_is_looked_at_too(folder, monkeypatch):
    """Files of the hub come one by one: the index is there before the weights that it names."""
    sharded(folder, "pytorch_model.bin")
    asked = []

    def cached(name, file, **_):
        asked.append((name, file))
        return str(folder / file)

    monkeypatch.setattr("foveate.ask.loading.cached_file", cached)
    config = type("Config", (), {"model_type": "llava"})()
    monkeypatch.setattr("foveate.ask.loading.AutoConfig.from_pretrained", lambda *_, **__: config)
    with pytest.raises(fv.InputError, match="safetensors"):
        fv.load("owner/name", device="cpu")
    assert asked == [("owner/name", INDEX)]


def test_sound_parts_and_the_links_of_the_hubs_cache_are_loaded(folder, tmp_path):
    """In the cache, a snapshot's files are links to blobs named by their contents."""
    sharded(folder)
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert load(snapshot).card.depth == 2


# -- what the packages below raise ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        (
            "config.json",
            {"text_config": 5},
            "its config cannot be read: .*Validation.*Field 'text_config' with value 5",
        ),
        ("config.json", {"model_type": []}, "its config cannot be read: TypeError: unhashable"),
        ("config.json", {"image_token_index": 10**30}, "10{30} in its config.json is no id of an image token"),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "its weights cannot be read: TypeError"),
        ("generation_config.json", {"pad_token_id": "x"}, "its weights cannot be read: TypeError"),
        ("tokenizer.json", {"model": 5}, "its processor cannot be read: Exception: data did not match any variant"),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "PanicException"),
        ("tokenizer_config.json", {"bos_token": 5}, "its processor cannot be read: TypeError: Special token bos_token"),
        ("processor_config.json", {"image_processor": []}, "its processor cannot be read: AttributeError"),
        ("processor_config.json", {"processor_class": "NoSuch"}, "its processor is only a Tokenizers"),
    ],
)
def test_wrong_values_are_said_with_the_part_that_has_them(folder, file, values, says):
    change(folder / file, **values)
    refused(folder, says)


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_weights_that_were_cut_off_are_said(folder, keep):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    refused(folder, "its weights cannot be read: SafetensorError: ")


def test_a_lack_of_memory_is_no_damage(folder, monkeypatch):
    def greedy(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("foveate.ask.loading.AutoConfig.from_pretrained", greedy)
    with pytest.raises(torch.OutOfMemoryError):
        load(folder)


# -- what comes to light when the first question is asked -----------------------------------------------------


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate. Change the messages"),
        ("{% for %}", "TemplateSyntaxError: Expected an expression"),
        ("{{ a.b.c }}", "UndefinedError: 'a' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError: access to attribute '__class__'"),
        ("{{ 1 + 'x' }}", "TypeError: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError: "),
        (5, "TypeError: "),
    ],
)
def test_a_template_that_fails_is_named(template, says, vlm, demo, monkeypatch):
    monkeypatch.setattr(vlm.processor, "chat_template", template)
    with pytest.raises(fv.InputError, match=says) as error:
        vlm.ask(demo, "What ?")
    name = re.escape(vlm.model.name_or_path)
    assert re.match(rf"The chat template of {name} cannot write this conversation: ", str(error.value))
    assert "\n" not in str(error.value)


def test_a_mistake_of_our_own_is_not_hidden(vlm, demo, monkeypatch):
    def mistaken(*_):
        raise TypeError("a mistake of our own")

    monkeypatch.setattr("foveate.ask.prompt.text_of", mistaken)
    with pytest.raises(TypeError, match="mistake"):
        vlm.ask(demo, "What ?")


# -- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["~nouser/m", "./a\0b", "a\0b", "./" + "m" * 5000, "m" * 5000, "./\udcff", "\udcff/m", "./two\nlines"],
    ids=lambda name: ascii(name)[:12],
)
def test_a_name_that_cannot_be_one_is_refused_in_one_line(name):
    with pytest.raises(fv.InputError) as error:
        fv.load(name, device="cpu")
    line = str(error.value)
    assert line.isprintable()
    assert len(line) < 700
