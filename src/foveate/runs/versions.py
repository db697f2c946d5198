"""The versions and the commit with which a figure was made."""

import subprocess
from pathlib import Path

import torch
import transformers

from foveate.plain.version import __version__

HERE = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Return the versions of foveate, torch and transformers."""
    return {"foveate": __version__, "torch": torch.__version__, "transformers": str(transformers.__version__)}


def commit() -> str | None:
    """Return the commit of the checkout that this runs from, with "+" if files differ; None outside a checkout."""
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
