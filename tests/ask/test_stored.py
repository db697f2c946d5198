"""A look in a file: restored bit for bit, and refused where it is not what it must be."""

import copy
import errno
import json

import numpy as np
import peft
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import foveate as fv
from foveate.ask import stored
from foveate.ask.answering import Solved, answers_behind
from foveate.ask.look import look_at
from foveate.engine.copies import tensors_of
from foveate.registry import family_for
from tests import models
from tests.ask.conftest import asked, random_vlm
from tests.ask.test_look import FEW, prefix_of
from tests.ask.test_prefix import NEW
from tests.ask.test_prefix import vlm as small  # noqa: F401 - a fixture
from tests.invariants.settings import EXAMPLES

FAMILIES = ("gemma3", "gemma4", "idefics3", "llava", "qwen2_5_vl", "qwen3_5", "qwen3_vl")


# -- bit for bit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "v2drop-0", "visiondrop-0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_look_comes_back_bit_for_bit(family, name, tmp_path, monkeypatch):
    vlm = random_vlm(family, monkeypatch)
    word = "tv" if family.startswith("qwen") else "ti"
    prompt = asked(vlm, word, lengths=(5,))[0]
    ask = prefix_of(vlm, prompt, None if name is None else EXAMPLES[name])
    path = tmp_path / "look.safetensors"
    stored.write(path, ask.look, {"turns": []}, vlm.model, force=False)
    back = stored.read(path).look(family_for(vlm.model))
    assert back.nbytes == ask.look.nbytes
    assert torch.equal(back.ids, ask.look.ids)
    for layer, before in zip(back.cache.layers, ask.look.cache.layers, strict=True):
        assert type(layer) is type(before)
        for (name_of, tensor), (name_before, was) in zip(tensors_of(layer), tensors_of(before), strict=True):
            assert (name_of, tensor.dtype) == (name_before, was.dtype)
            assert torch.equal(tensor, was)
    before, again = ask(prompt)[0], behind(vlm, back, prompt, ask.method)
    assert again.tokens == before.tokens
    assert torch.equal(again.first, before.first)


def behind(vlm, look, prompt, method):
    """The answer to a prompt that goes on from a look."""
    return answers_behind(vlm, look, [prompt], Solved(method), FEW, first=True)[0]


def test_layers_that_share_their_columns_share_them_again(tmp_path):
    vlm = random_vlm("llava")
    look = look_at(vlm.model, asked(vlm)[0].inputs, EXAMPLES["v2drop-0"])
    stored.write(tmp_path / "look", look, {}, vlm.model, force=False)
    back = stored.read(tmp_path / "look").look(family_for(vlm.model))
    assert shared(back.cache) == shared(look.cache)
    assert len(load_file(tmp_path / "look")) < 3 * len(look.cache.layers)


def shared(cache):
    """Which layers have the same columns, by the first of them."""
    first = {}
    return [first.setdefault(id(getattr(layer, "base", None)), index) for index, layer in enumerate(cache.layers)]


# -- a file of its own --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(2).integers(0, 255, (336, 336, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def prefix(small, picture):  # noqa: F811
    return small.look(picture, method="v2drop", retention=0.4)


@pytest.fixture
def file(prefix, tmp_path):
    path = tmp_path / "look.safetensors"
    prefix.save(path)
    return path


def test_a_loaded_prefix_answers_as_the_one_that_was_saved(small, prefix, file):  # noqa: F811
    loaded = fv.load_prefix(file, small)
    assert (loaded.method, loaded.asked_share, loaded.tokens) == (prefix.method, 0.4, prefix.tokens)
    assert loaded.trace.to_dict() == prefix.trace.to_dict()
    for question in ("What is it?", "\nIs it?"):
        answer, before = loaded.ask(question, **NEW), prefix.ask(question, **NEW)
        assert answer.to_dict() == before.to_dict()
    assert loaded.talk().ask("What?", **NEW).tokens == prefix.talk().ask("What?", **NEW).tokens
    assert [answer.tokens for answer in loaded.ask_many(["What?", "Is it so?"], **NEW)] == [
        answer.tokens for answer in prefix.ask_many(["What?", "Is it so?"], **NEW)
    ]
    with pytest.raises(fv.InputError, match="no picture to draw on"):
        answer.show()


def test_a_prefix_without_dropping_is_loaded_too(small, picture, tmp_path):  # noqa: F811
    prefix = small.look(picture)
    prefix.save(tmp_path / "whole")
    loaded = fv.load_prefix(tmp_path / "whole", small)
    assert (loaded.method, loaded.trace.history) == (None, [])
    assert loaded.ask("What?", **NEW).to_dict() == prefix.ask("What?", **NEW).to_dict()


def test_a_processor_without_a_template_takes_a_loaded_prefix(small, picture, tmp_path):  # noqa: F811
    processor = copy.deepcopy(small.processor)
    processor.chat_template = None
    plain = fv.VLM(small.model, processor, "plain")
    prefix = plain.look(picture)
    prefix.save(tmp_path / "plain")
    loaded = fv.load_prefix(tmp_path / "plain", plain)
    assert loaded.ask("What?", **NEW).tokens == prefix.ask("What?", **NEW).tokens


def test_the_same_model_loaded_again_takes_it(small, prefix, file):  # noqa: F811
    again = fv.VLM(copy.deepcopy(small.model), small.processor, "again")
    assert fv.load_prefix(file, again).ask("What?", **NEW).tokens == prefix.ask("What?", **NEW).tokens


def test_nothing_is_overwritten_unless_one_says_so(small, prefix, file):  # noqa: F811
    before = file.read_bytes()
    with pytest.raises(fv.InputError, match=r"exists already.*force=True"):
        prefix.save(file)
    assert file.read_bytes() == before
    file.write_bytes(b"")
    prefix.save(file, force=True)
    assert fv.load_prefix(file, small).nbytes == prefix.nbytes
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_comes_meanwhile_is_not_overwritten(prefix, tmp_path, monkeypatch):
    path = tmp_path / "look"

    def save(tensors, part, metadata):
        save_file(tensors, part, metadata)
        path.write_text("another's")

    monkeypatch.setattr(stored, "save_file", save)
    with pytest.raises(fv.InputError, match="exists already"):
        prefix.save(path)
    assert path.read_text() == "another's"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error")])
def test_a_full_disk_leaves_nothing_half_written(prefix, tmp_path, monkeypatch, error):
    def save(tensors, part, metadata):
        part.write_bytes(b"half")
        raise error

    monkeypatch.setattr(stored, "save_file", save)
    with pytest.raises(fv.InputError, match=r"could not be written: (No space|I/O)"):
        prefix.save(tmp_path / "look")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(prefix, tmp_path):
    with pytest.raises(fv.InputError, match="could not be written: No such file"):
        prefix.save(tmp_path / "nowhere" / "look")


# -- refusals -----------------------------------------------------------------------------------------------------


def changed(path, **values):
    """The file with other metadata; None leaves an entry out."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name, value in values.items():
        metadata.pop(name)
        if value is not None:
            metadata[name] = value
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -5000])
def test_a_truncated_file_is_refused(small, file, keep):  # noqa: F811
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(fv.InputError, match=r"no whole prefix|is empty"):
        fv.load_prefix(file, small)


@pytest.mark.parametrize("place", [-3, -4000])
def test_a_flipped_bit_is_found(small, file, place):  # noqa: F811
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    with pytest.raises(fv.InputError, match="is damaged: its checksum"):
        fv.load_prefix(file, small)


def test_a_file_of_something_else_is_refused(small, tmp_path):  # noqa: F811
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights")
    (tmp_path / "text").write_text("hello, this is no file of tensors at all")
    with pytest.raises(fv.InputError, match="is no prefix of foveate"):
        fv.load_prefix(tmp_path / "weights", small)
    with pytest.raises(fv.InputError, match="no whole prefix"):
        fv.load_prefix(tmp_path / "text", small)
    with pytest.raises(fv.InputError, match="cannot be read"):
        fv.load_prefix(tmp_path / "nowhere", small)
    with pytest.raises(fv.InputError, match="a folder"):
        fv.load_prefix(tmp_path, small)


@pytest.mark.parametrize("values", [{"format": "foveate prefix 2"}, {"versions": "foveate 0.0, transformers 5.0"}])
def test_another_version_is_refused(small, file, values):  # noqa: F811
    changed(file, **values)
    with pytest.raises(fv.InputError, match=r"was written by foveate .*here is"):
        fv.load_prefix(file, small)


def test_another_model_is_refused(small, file):  # noqa: F811
    for change in (lambda model: model.half(), lambda model: next(model.parameters()).data.mul_(1.5)):
        model = copy.deepcopy(small.model)
        change(model)
        with pytest.raises(fv.InputError, match="is of another model than other: small"):
            fv.load_prefix(file, fv.VLM(model, small.processor, "other"))


def test_another_method_is_refused(small, file):  # noqa: F811
    assert fv.load_prefix(file, small, method="v2drop", retention=0.4).method.name == "v2drop"
    for other in ({"method": "v2drop", "retention": 0.5}, {"method": "random", "retention": 0.4}):
        with pytest.raises(fv.InputError, match="was looked at with V2Drop"):
            fv.load_prefix(file, small, **other)


def test_a_method_that_is_not_there_is_refused(small, prefix, tmp_path, monkeypatch):  # noqa: F811
    path = tmp_path / "look"
    monkeypatch.setattr(fv.V2Drop, "to_dict", lambda _: {"method": "nosuch"})
    prefix.save(path)
    with pytest.raises(fv.InputError, match=r"does not hold a prefix of small: .*nosuch"):
        fv.load_prefix(path, small)


@pytest.mark.parametrize("about", ["{", "[]", json.dumps({"method": None})])
def test_metadata_that_make_no_sense_are_refused(small, file, about):  # noqa: F811
    tensors = load_file(file)
    changed(file, about=about, digest=stored._digest(about, tensors))
    with pytest.raises(fv.InputError, match=r"does not hold a prefix of small|is damaged"):
        fv.load_prefix(file, small)


def test_names_of_models_tell_weights_apart_and_no_folders():
    model = models.made_of("llava", models.TINY["llava"].config())
    name = stored.fingerprint(model)
    model.config._name_or_path = "/elsewhere"
    assert stored.fingerprint(model) == name
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1
    assert stored.fingerprint(model) != name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still reads it
def test_another_adapter_has_another_name():
    lora = peft.LoraConfig(target_modules=["q_proj"], r=2)
    model = peft.get_peft_model(models.made_of("llava", models.TINY["llava"].config()), lora)
    name = stored.fingerprint(model)
    with model.disable_adapter():
        assert stored.fingerprint(model) != name
    assert stored.fingerprint(model) == name
