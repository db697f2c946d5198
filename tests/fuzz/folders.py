"""Damaged folders of a model: looked at, loaded, and asked a question where they load."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image

import foveate as fv
from foveate.plain.upstream import is_out_of_memory
from tests.cli.conftest import save_tiny_llava
from tests.fuzz.judging import Case, Refused
from tests.fuzz.mutating import TEXTS, altered, damaged, json_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "model.safetensors"
EXTRA = (
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json",
    "video_preprocessor_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip
CONTENTS = st.sampled_from((b"{}", b"", b"[]", b"null", b"3", POINTER)) | st.dictionaries(TEXTS, TEXTS).map(json_of)
TARGETS = (".", "missing", "/etc/hostname", "../outside")
HARMS = ("removed", "bytes", "bytes", "values", "values", "folder", "link", "pipe", "content", "extra")


@cache
def sound() -> Path:
    """A folder that nothing is wrong with."""
    return save_tiny_llava(Path(tempfile.mkdtemp(prefix="foveate-fuzz-")), layers=2)


def asked(folder: Path) -> None:
    try:
        vlm = fv.load(str(folder), device="cpu")
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):  # of a config with a large number in it: the caller's to handle
            raise Refused("out of memory") from error
        raise
    vlm.ask(Image.new("RGB", (20, 20), "teal"), "What is this ?", max_new_tokens=2)


def cases() -> list[st.SearchStrategy[Case]]:
    asked(sound())  # what answers is imported then
    return [_cases()]


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    """A copy of the folder with something done to one of its files, or to two."""
    harms = [_harm(draw) for _ in range(draw(st.sampled_from((1, 1, 2))))]

    def put(folder: Path) -> None:
        shutil.copytree(sound(), folder, dirs_exist_ok=True)
        for name, _, replace in harms:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            replace(path)

    return Case(", ".join(f"{how} {name}" for name, how, _ in harms), asked, put)


def _harm(draw: st.DrawFn) -> tuple[str, str, Callable[[Path], object]]:
    """A file's name, what is done to it, and what does it once the file is away."""
    name = draw(st.sampled_from(sorted(path.name for path in sound().iterdir())))
    how = draw(st.sampled_from(HARMS))
    if how == "removed":
        return name, how, lambda path: None
    if how == "folder":
        return name, how, Path.mkdir
    if how == "pipe":
        return name, how, os.mkfifo
    if how == "link":
        target = draw(st.sampled_from((*TARGETS, name)))
        return name, how, lambda path: path.symlink_to(target)
    if how == "extra":
        name, content = draw(st.sampled_from(EXTRA)), draw(CONTENTS)
    elif how == "content":
        content = draw(st.sampled_from([POINTER, *(path.read_bytes() for path in sorted(sound().iterdir()))]))
    else:
        content = _changed(draw, name, (sound() / name).read_bytes(), how)
    return name, how, lambda path: path.write_bytes(content)


def _changed(draw: st.DrawFn, name: str, data: bytes, how: str) -> bytes:
    """Damaged, or with other values in a file of JSON or in the head of the weights."""
    if how == "bytes":
        return draw(damaged(data))
    if name == WEIGHTS:
        size = int.from_bytes(data[:8], "little")
        head = json_of(draw(altered(json.loads(data[8 : 8 + size]))))
        return len(head).to_bytes(8, "little") + head + data[8 + size :]
    return draw(altered(json.loads(data)).map(json_of) if name.endswith(".json") else damaged(data))
