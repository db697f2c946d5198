"""What a figure depends on: weights and all other files of a model, versions, and the state of the code."""

import hashlib
import importlib.metadata
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import huggingface_hub

from foveate import embedded
from foveate._loading import EMBEDDED, Loaded
from foveate._versions import versions

__all__ = ["commit", "conditions", "versions"]

READ = frozenset({".json", ".jinja", ".model", ".safetensors", ".tiktoken", ".txt"})
"""Suffixes of what a model is loaded from: configs, templates, tokenizers and weights."""


def commit() -> str | None:
    """The commit of the checkout this runs from, with "+" behind it if files differ; None outside of one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

    try:
        found, changed = git("rev-parse", "HEAD").strip(), git("status", "--porcelain", "--", str(here.parent))
    except (OSError, subprocess.CalledProcessError):
        return None
    return found + ("+" if changed.strip() else "")


def conditions(loaded: Loaded) -> dict[str, Any]:
    """All of a model that its answers depend on; see `foveate.eval.store.Store`."""
    folder, from_hub = _place(loaded.name)
    files = {} if folder is None else _files(folder, hash_weights=not from_hub)
    if from_hub:
        weights = f"{loaded.name}@{'unknown revision' if folder is None else folder.name}"
    else:
        weights = _joined([digest for name, digest in files.items() if name.endswith(".safetensors")])
    ran = {name: value for name, value in loaded.to_dict().items() if name != "name"}
    return {"weights": weights, "files": files, **ran, **versions(), "libraries": _libraries()}


def _place(name: str) -> tuple[Path | None, bool]:
    """The folder that a model's files lie in, and whether it is the hub's cache; there, a revision's folder bears the
    name of its commit. None where the cache has none."""
    folder = embedded.path() if name == EMBEDDED else Path(name).expanduser()
    if folder.is_dir():
        return folder, False
    config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    return (Path(config).parent if isinstance(config, str) else None), True


def _files(folder: Path, hash_weights: bool) -> dict[str, str]:
    """SHA-256 of every file that transformers may read, by its name in the folder.

    Args:
        folder: A local model, or a revision in the hub's cache.
        hash_weights: Whether to read safetensors too. In the hub's cache they are links to files named by their
            contents, so that name and size will do.
    """
    digests = {}
    for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        if path.suffix not in READ or not path.is_file():
            continue
        if path.suffix == ".safetensors" and not hash_weights:
            digest = f"{path.resolve().name}, {path.stat().st_size} bytes"
        else:
            digest = _sha256(path)
        digests[path.relative_to(folder).as_posix()] = digest
    return digests


def _joined(digests: Sequence[str]) -> str:
    """One SHA-256 of several, in their order."""
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _libraries() -> dict[str, str]:
    """Versions of what makes tensors of pictures and text."""
    installed = {}
    for name in ("numpy", "pillow", "tokenizers", "torchvision"):
        with suppress(PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed
