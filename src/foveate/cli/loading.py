"""Models from the hub, a local folder, or this package: safetensors only, never remote code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from foveate import embedded
from foveate.cli.options import EMBEDDED, ModelOptions
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
    with _quiet(), _explained(options.model):
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
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
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
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if text.endswith((".", "!", "?")) else f"{text}."


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and notices off the screen while loading."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
