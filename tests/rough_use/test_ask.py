"""Asking: odd values, damaged folders, and what stays behind."""

import gc
import json
import os
import shutil
import signal
import socket
import time
import weakref
from contextlib import suppress

import huggingface_hub.constants
import pytest

import foveate as fv

QUESTION = "What is this ?"


def test_a_look_goes_on_behind_a_stream_that_failed(vlm, picture):
    faults = []
    # A look goes on only with the hooks that it was made with.
    with vlm.model.lm_head.register_forward_pre_hook(lambda *_: 1 / faults[0] if faults else None):
        prefix = vlm.look(picture)
        stream = prefix.ask(QUESTION, stream=True)
        faults.append(0)
        with pytest.raises(ZeroDivisionError):
            list(stream)
        faults.clear()
        assert prefix.ask(QUESTION, max_new_tokens=2).text


FOLDERS = [
    ("generation_config", "cache_implementation", "quantized"),
    ("processor_config", "image_mean", []),
    ("processor_config", "image_mean", "half"),
]


@pytest.mark.parametrize("change", FOLDERS)
def test_an_odd_value_in_a_folder_ends_in_an_answer_or_in_an_error_of_ours(model, picture, tmp_path, change):
    file, key, value = change
    folder = shutil.copytree(model, tmp_path / "model")
    values = json.loads((path := folder / f"{file}.json").read_text())
    values.get("image_processor", values)[key] = value
    path.write_text(json.dumps(values))
    with suppress(fv.FoveateError):
        fv.load(folder, device="cpu").ask(picture, QUESTION, fit="pad", max_new_tokens=2)


VALUES = [
    {"temperature": 1.0, "seed": 2**70},
    {"temperature": 1e-300},
    {"stop": ("\ud800",)},
    {"choices": ["\ud800", "yes"]},
    {"choices": {"yes", "no"}},
    {"max_tokens": 5},
]


@pytest.mark.parametrize("options", VALUES)
def test_an_odd_value_ends_in_an_answer_or_in_an_error_of_ours(vlm, picture, options):
    with suppress(fv.FoveateError):
        vlm.ask(picture, QUESTION, **options)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_that_reads_the_stream_of_its_parent_does_not_wait_for_ever(vlm, picture):
    slowed = vlm.model.lm_head.register_forward_pre_hook(lambda *_: time.sleep(0.1))
    with slowed, vlm.ask(picture, QUESTION, stream=True, max_new_tokens=2) as stream:
        child = os.fork()
        if child == 0:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with suppress(BaseException):
                list(stream)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("method", [None, "v2drop", "visiondrop+read:keep=0.5"])
def test_an_answer_does_not_keep_the_model(model, picture, method):
    vlm = fv.load(model, device="cpu")
    kept = weakref.ref(vlm.model)
    answer = vlm.ask(picture, QUESTION, method=method, max_new_tokens=2)
    del vlm
    gc.collect()
    assert kept() is None
    assert answer.vision_tokens == 36
    assert answer._repr_html_().count("<img") == (method is not None)


@pytest.fixture(scope="module")
def embedded():
    return fv.load()


@pytest.mark.parametrize("word", ["</s>", "<pad>"])
def test_a_question_holds_no_special_token(embedded, word):
    with suppress(fv.FoveateError):
        ids = embedded.prepare([], f"What {word} is it?").inputs["input_ids"]
        assert embedded.tokenizer.convert_tokens_to_ids(word) not in ids


def test_a_url_is_told_that_nothing_is_downloaded(vlm):
    with pytest.raises(fv.InputError) as refused:
        vlm.ask("https://x.y/z.png", QUESTION)
    assert "https://x.y/z.png" in str(refused.value)
    assert "No such file" not in str(refused.value)


def test_a_model_of_the_hub_is_not_waited_for_where_there_is_no_network(monkeypatch):
    waited = []

    def no_network(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(fv.InputError):
        fv.load("nobody/nothing")
    assert sum(waited) < 5
