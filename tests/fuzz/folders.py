"""Damaged folders of a model: looked at, loaded, and asked a question where they load."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

from PIL import Image

import foveate as fv
from foveate._upstream import is_out_of_memory
from tests.cli.conftest import save_tiny_llava
from tests.fuzz.judging import Case, Refused
from tests.fuzz.mutating import altered, damaged, odd_text, text_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
WEIGHTS = "model.safetensors"
EXTRA = (
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json",
    "video_preprocessor_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "vocab.json", "merges.txt", "generation_config.json",
)  # fmt: skip


@cache
def sound() -> Path:
    """A folder that nothing is wrong with."""
    folder = Path(tempfile.mkdtemp(prefix="foveate-fuzz-"))
    return save_tiny_llava(folder, layers=2)


def case(rng: Random, folder: Path) -> Case:
    """A copy of the folder with something done to one of its files, or to two."""
    model = Path(shutil.copytree(sound(), folder / "model"))
    done = []
    for _ in range(rng.choice((1, 1, 2))):
        file = rng.choice(sorted(path.name for path in model.iterdir()))
        harm = rng.choice(HARMS)
        done.append(f"{harm.__name__.strip('_')} {file}")
        harm(rng, model / file)
    return Case(", ".join(done), lambda: _asked(model))


def _asked(folder: Path) -> None:
    try:
        vlm = fv.load(str(folder), device="cpu")
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):  # of a config with a large number in it: the caller's to handle
            raise Refused("out of memory") from error
        raise
    vlm.ask(Image.new("RGB", (30, 20), "teal"), "What is this ?", max_new_tokens=2)


# -- what is done to a file -----------------------------------------------------------------------------------


def _bytes(rng: Random, path: Path) -> None:
    if path.is_file():
        path.write_bytes(damaged(rng, path.read_bytes()))


def _values(rng: Random, path: Path) -> None:
    """Other values in a file of JSON, or in the head of the weights."""
    if not path.is_file():
        return
    data = path.read_bytes()
    if path.name == WEIGHTS:
        size = int.from_bytes(data[:8], "little")
        head = text_of(altered(rng, json.loads(data[8 : 8 + size])))
        path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + size :])
        return
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):  # another harm was there first
        path.write_text(odd_text(rng), errors="surrogatepass")
        return
    path.write_bytes(text_of(altered(rng, value)))


def _removed(rng: Random, path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _folder(rng: Random, path: Path) -> None:
    _removed(rng, path)
    path.mkdir()


def _link(rng: Random, path: Path) -> None:
    _removed(rng, path)
    path.symlink_to(rng.choice((path, path.parent, "missing", "/etc/hostname", "../outside")))


def _pipe(rng: Random, path: Path) -> None:
    _removed(rng, path)
    os.mkfifo(path)


def _pointer(rng: Random, path: Path) -> None:
    _removed(rng, path)
    path.write_bytes(POINTER)


def _another(rng: Random, path: Path) -> None:
    """The content of another file."""
    other = rng.choice(sorted(sound().iterdir()))
    _removed(rng, path)
    path.write_bytes(other.read_bytes())


def _extra(rng: Random, path: Path) -> None:
    """A file more, which transformers looks for."""
    name = rng.choice(EXTRA)
    content = rng.choice((b"{}", b"", b"[]", b"null", b"3", POINTER, text_of({odd_text(rng): odd_text(rng)})))
    (path.parent / name).write_bytes(content)


HARMS: tuple[Callable[[Random, Path], None], ...] = (
    _bytes, _bytes, _bytes, _values, _values, _values, _values, _removed, _folder, _link, _pipe, _pointer, _another,
    _extra,
)  # fmt: skip
