"""Models from the hub, a local folder, or this package: safetensors only, never remote code."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.utils.logging
import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from foveate import embedded
from foveate.cli.options import EMBEDDED, ModelOptions
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.errors import FoveateError, InputError, UnsupportedError
from foveate.registry import families

__all__ = ["Loaded", "load"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its processor, in evaluation mode.

    Attributes:
        name: What the user called it.
        model, processor: The transformers objects.
    """

    name: str
    model: Any
    processor: Any

    def to_dict(self) -> dict[str, Any]:
        """What a reader needs to know to repeat a run."""
        return {
            "name": self.name,
            "model_type": self.model.config.model_type,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "attention": self.model.config.get_text_config()._attn_implementation,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def load(options: ModelOptions) -> Loaded:
    """Load what the flags name.

    Raises:
        UsageError: If the device does not exist here.
        InputError: If there is no such model, it has no safetensors, or it needs code of its own.
        UnsupportedError: If no family serves it.
    """
    device = _device(options.device)
    place = str(embedded.path()) if options.model == EMBEDDED else options.model
    if place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir():
        raise InputError(f"There is no folder {place}. Give a hub id or a local folder that holds a model.")
    place = str(Path(place).expanduser()) if place.startswith("~") else place
    with _shown(options.model, downloads=not Path(place).is_dir()), _explained(options.model):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _check_family(config)
        model = AutoModelForImageTextToText.from_pretrained(
            place,
            config=config,
            dtype=_dtype(options.dtype, device),
            attn_implementation=None if options.attention == "auto" else options.attention,
            use_safetensors=True,
            trust_remote_code=False,
        )
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    return Loaded(options.model, model.to(device).eval(), processor)


def _check_family(config: Any) -> None:
    if config.model_type not in families():
        raise UnsupportedError(
            f"No family for model_type {config.model_type!r}. Supported: {', '.join(sorted(families()))}. "
            "To add one: docs/guides/new-family.md."
        )


def _device(name: str) -> torch.device:
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return here or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", here.type if here else "cpu"):
            raise RuntimeError("torch sees no such accelerator")
        torch.empty(0, device=device)
    except RuntimeError as error:
        raise UsageError(f"--device {name} is not available here. Use auto, cpu, or one that torch sees.") from error
    return device


def _dtype(name: str, device: torch.device) -> "torch.dtype | str":
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers and the hub raise for a model that cannot be loaded into one line."""
    try:
        yield
    except FoveateError:
        raise
    except ImportError as error:
        raise InputError(f"Model {name!r} needs a package that is missing: {_first_line(error)}") from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"Model {name!r} cannot be loaded: {_first_line(error)} "
            "Give a hub id or a local folder with a config, a processor and safetensors weights."
        ) from error


def _first_line(error: Exception) -> str:
    """The first line of a message, cut back to whole sentences: some go on in the lines below."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if text.endswith((".", "!", "?")):
        return text
    whole, stop, _ = text.rpartition(". ")
    return f"{whole}." if stop else f"{text}."


@contextmanager
def _shown(name: str, *, downloads: bool) -> Iterator[None]:
    """Show on stderr that a model is loading: the hub's own bars where it may be downloaded, else a line.

    Warnings and notices of transformers and the hub stay off the screen; what matters of them is in errors.
    """
    levels = [(log, log.get_verbosity()) for log in (transformers.logging, huggingface_hub.utils.logging)]
    bars = transformers.logging.is_progress_bar_enabled()
    for log, _ in levels:
        log.set_verbosity_error()
    if downloads and sys.stderr.isatty():
        note(f"looking for {name} in the cache and on the hub")
    else:
        transformers.logging.disable_progress_bar()
    try:
        with nullcontext() if downloads else busy(f"Loading {name}"):
            yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
