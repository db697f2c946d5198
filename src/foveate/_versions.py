"""The versions that a figure depends on."""

import torch
import transformers

from foveate._version import __version__

__all__ = ["versions"]


def versions() -> dict[str, str]:
    """Of foveate and of the libraries that compute."""
    return {"foveate": __version__, "torch": torch.__version__, "transformers": str(transformers.__version__)}
