"""Record everything an answer depends on: a model's weights and files, settings, and versions."""

import hashlib
import importlib.metadata
import inspect
import secrets
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import huggingface_hub

from foveate import embedded
from foveate.ask.generation import Generation
from foveate.ask.second_look import conditions_of
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.plain import own_files
from foveate.plain.files import sha256_of
from foveate.plain.folders import ModelFolder
from foveate.runs.versions import versions

READ = frozenset({".json", ".jinja", ".model", ".safetensors", ".tiktoken", ".txt"})
"""Suffixes of the files that a model is loaded from: configs, templates, tokenizers and weights."""


def conditions(vlm: VLM) -> dict[str, object]:
    """Return everything about a model that its answers depend on; see `foveate.eval.records.Answers`."""
    setup = vlm.card.to_dict()
    del setup["name"]
    libraries = {}  # they turn pictures and text into tensors
    for name in ("numpy", "pillow", "tokenizers", "torchvision"):
        with suppress(PackageNotFoundError):
            libraries[name] = importlib.metadata.version(name)
    values = {**_files_of(vlm.name), **setup, **versions(), "libraries": libraries}
    values["in memory"] = conditions_of(vlm, Generation())  # the model may have changed since it was loaded
    folder = _local(vlm.name)
    if folder is not None and (base := ModelFolder(vlm.name, folder).base) is not None:
        values |= {"base": _files_of(base), "peft": importlib.metadata.version("peft")}
    return values


def _local(name: str) -> Path | None:
    """Return the folder of a local or embedded model; None for a model in the hub's cache."""
    if name in embedded.NAMES:
        folder = embedded.path()
    else:
        folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    return folder


def _files_of(name: str) -> dict[str, object]:
    """Return identifiers of a model's weights and of all its files. In the hub's cache, a commit identifies weights."""
    if (folder := _local(name)) is not None:
        files = _files(folder, hash_weights=True)
        return {
            "weights": join_digests([files[file] for file in files if file.endswith(".safetensors")]),
            "files": files,
        }
    config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return {"weights": f"{name}@unknown revision", "files": {}}
    folder = Path(config).parent
    return {"weights": f"{name}@{folder.name}", "files": _files(folder, hash_weights=False)}


def _files(folder: Path, hash_weights: bool) -> dict[str, str]:
    """Return the SHA-256 of each file that transformers may read, by its path in the folder.

    Args:
        folder: A local model, or a revision in the hub's cache.
        hash_weights: Hash safetensors too. In the hub's cache they are links to files named by their hash, so name and
            size suffice.
    """
    digests = {}
    for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        if path.suffix not in READ or not path.is_file():
            continue
        if path.suffix == ".safetensors" and not hash_weights:
            digest = f"{path.resolve().name}, {path.stat().st_size} bytes"
        else:
            digest = sha256_of(path)
        digests[path.relative_to(folder).as_posix()] = digest
    return digests


def join_digests(digests: Sequence[str]) -> str:
    """Return one SHA-256 of several, in their order."""
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


@cache
def code_of(kind: type[Method]) -> str:
    """Return the SHA-256 of a method's source file and of the files that it imports: its code may change under a name.

    Of a method defined in a notebook, whose code is in no file, it is a random text that no other class has.
    """
    module = kind.__module__
    if module.startswith(own_files.MODULE):
        return module.removeprefix(own_files.MODULE)
    with suppress(OSError, TypeError, InputError):
        file = Path(inspect.getfile(kind))
        if module.startswith("foveate."):  # the version tells the rest of the package
            return sha256_of(file)
        return own_files.fingerprint(own_files.digests_of(file, module))
    return secrets.token_hex(32)
