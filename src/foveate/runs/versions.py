"""The versions and the commit that a figure depends on."""

import subprocess
from pathlib import Path

import torch
import transformers

from foveate.plain.version import __version__

HERE = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Of foveate and of the libraries that compute."""
    return {"foveate": __version__, "torch": torch.__version__, "transformers": str(transformers.__version__)}


def commit() -> str | None:
    """The commit of the checkout this runs from, with "+" behind it if files differ; None outside of one."""
    try:
        head, changed = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", str(HERE))
    except (OSError, subprocess.CalledProcessError):
        return None
    if changed:
        return f"{head}+"
    return head


def _git(*words: str) -> str:
    command = ["git", "-C", str(HERE), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
