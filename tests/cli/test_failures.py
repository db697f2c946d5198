"""What cannot be done ends in one line on stderr, and a code."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from inspect import currentframe
from unittest.mock import Mock

import pytest
import torch
from torch._inductor.exc import CppCompileError, InductorError
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from foveate import embedded
from foveate.cli.lists import Methods
from foveate.plain.own_files import MODULE
from tests.cli.conftest import QUESTION, save_tiny_llava


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--budget", "1"], 2, "floor"),
        (["--budget", "37"], 2, "got 37"),
        (["--set", "layers=40,41", "--set", "keep=0.5,0.5"], 2, "0 to 31"),
        (["--device", "cuda:77"], 2, "cuda:77"),
        (["--prompt", "wh\udcffat", "--retention", "0.5"], 1, "UTF-8"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_stderr(run, tiny_llava, picture, arguments, code, says):
    got, out, err = run("generate", picture, "--model", tiny_llava, "--prompt", "What is this ?", *arguments)
    assert got == code
    assert out == ""
    assert err.startswith("foveate: ")
    assert says in err
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


@pytest.mark.parametrize("package", ["tyro", "torch"])
def test_ctrl_c_while_a_package_loads_ends_as_quietly(package):
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
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


NOT_COMPILED = InductorError(CppCompileError(["g++", "main.cpp"], "main.cpp:1140: error: not declared"), currentframe())


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (
            NOT_COMPILED,
            1,
            "torch cannot compile an attention kernel here: CppCompileError: C++ compile error. Use one",
        ),
        (MemoryError(), 1, "out of memory: "),
        (torch.OutOfMemoryError("no room"), 1, "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: no"), 1, "out of memory: "),
        (RuntimeError("unable to mmap 9 bytes from file <m>: Cannot allocate memory (12)"), 1, "out of memory: "),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), 1, "out of memory: "),
    ],
)
def test_what_is_no_bug_ends_in_one_line(run, monkeypatch, error, code, says):
    monkeypatch.setattr(Methods, "run", Mock(side_effect=error))
    ended, out, err = run("methods")
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(f"foveate: {says}")


def test_a_bug_ends_with_70_and_with_what_a_report_needs(run, monkeypatch):
    monkeypatch.setattr(Methods, "run", Mock(side_effect=TypeError("an oddity\nin two lines")))
    code, out, err = run("methods")
    assert (code, out) == (70, "")
    says = "this is a bug in foveate: TypeError: an oddity. Please report it, with the command and the traceback below."
    assert err.startswith(f"foveate: {says}\nTraceback (most recent call last):\n")
    assert err.endswith("TypeError: an oddity\nin two lines\n")


@pytest.fixture(autouse=True)
def no_file_has_run(monkeypatch):
    """A report names methods' files that ran; other tests of this process have run some."""
    for name in [name for name in sys.modules if name.startswith(MODULE)]:
        monkeypatch.delitem(sys.modules, name)


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
@pytest.mark.parametrize("command", ["generate", ("tune", "--retention", 0.5)])
def test_a_processor_of_another_model_ends_in_one_line_that_names_both(run, mixed_up, picture, command, place, why):
    command, *flags = (command,) if isinstance(command, str) else command
    code, out, err = run(command, picture, *QUESTION[:2], *flags, "--model", mixed_up / place)
    assert (code, out) == (1, "")
    both = rf"\(LlavaProcessor\) does not fit its model \(LlavaForConditionalGeneration\): {why}"
    assert re.search(rf"^foveate: The processor of .*{place} {both}\. Load .*\n\Z", err, re.MULTILINE)


def test_what_the_untouched_model_takes_is_no_misfit(ask, picture, monkeypatch):
    monkeypatch.setattr("foveate.ask.running.kv_bytes", Mock(side_effect=ValueError("a mistake of our own")))
    code, _, err = ask("generate", picture)
    assert code == 70
    assert "foveate: this is a bug in foveate: ValueError: a mistake of our own. Please report it" in err


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash_attn is there")
def test_a_kernel_that_is_not_installed_ends_in_one_line(run):
    code, out, err = run("generate", "--attention", "flash_attention_2")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the package for FlashAttention2 doesn't seem to be installed. Install it, or use another" in err
