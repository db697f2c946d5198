"""The model that a command line names, and what the screen shows while it loads."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import huggingface_hub.utils.logging
import torch
import transformers

from foveate._loading import EMBEDDED, Loaded, device_of
from foveate._loading import load as load_model
from foveate.cli.options import ModelOptions
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.errors import UnsupportedError

__all__ = ["Loaded", "load", "named_device", "quiet"]


def load(options: ModelOptions) -> Loaded:
    """Load what the flags name.

    Raises:
        UsageError: If the device does not exist here.
        InputError: If there is no such model, it has no safetensors, or it needs code of its own.
        UnsupportedError: If no family serves it.
    """
    device = named_device(options.device)
    here = options.model == EMBEDDED or options.model.startswith((".", "/", "~")) or Path(options.model).is_dir()
    with _shown(options.model, downloads=not here):
        return load_model(options.model, device, dtype=options.dtype, attention=options.attention)


def named_device(name: str) -> torch.device:
    """The device that --device names.

    Raises:
        UsageError: If it does not exist here.
    """
    try:
        return device_of(name)
    except UnsupportedError as error:
        raise UsageError(f"--device {name} is not available here. Use auto, cpu, or one that torch sees.") from error


@contextmanager
def _shown(name: str, *, downloads: bool) -> Iterator[None]:
    """Show on stderr that a model is loading: the hub's own bars where it may be downloaded, else a line."""
    bars = transformers.logging.is_progress_bar_enabled()
    if downloads and sys.stderr.isatty():
        note(f"looking for {name} in the cache and on the hub")
    else:
        transformers.logging.disable_progress_bar()
    try:
        with quiet(), nullcontext() if downloads else busy(f"Loading {name}"):
            yield
    finally:
        if bars:
            transformers.logging.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and notices of transformers and the hub off the screen; what matters of them, foveate says."""
    levels = [(log, log.get_verbosity()) for log in (transformers.logging, huggingface_hub.utils.logging)]
    for log, _ in levels:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
