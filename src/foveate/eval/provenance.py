"""What a figure depends on: weights, versions, and the state of the code."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub

from foveate import embedded
from foveate._loading import EMBEDDED, Loaded
from foveate._versions import versions

__all__ = ["commit", "conditions", "versions"]


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
    ran = {name: value for name, value in loaded.to_dict().items() if name != "name"}
    return {"weights": _weights(loaded), **ran, **versions()}


def _weights(loaded: Loaded) -> str:
    """Which weights: SHA-256 of a folder's safetensors, or a hub id with its revision."""
    folder = embedded.path() if loaded.name == EMBEDDED else Path(loaded.name).expanduser()
    if not folder.is_dir():
        return f"{loaded.name}@{_revision(loaded.name)}"
    found = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _revision(name: str) -> str:
    """The commit of a hub model, which is the folder that its files lie in."""
    found = huggingface_hub.try_to_load_from_cache(name, "config.json")
    return Path(found).parent.name if isinstance(found, str) else "unknown revision"
