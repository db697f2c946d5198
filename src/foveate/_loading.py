"""Models from the hub, a local folder, or this package: safetensors only, never remote code."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from foveate import embedded
from foveate.errors import FoveateError, InputError, UnsupportedError
from foveate.registry import families, no_family

try:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
except (ImportError, RuntimeError) as error:  # its image code imports torchvision wherever there is one
    raise UnsupportedError(
        "transformers cannot be imported. Where torchvision was made for another torch, install the one of your torch, "
        "or none: pip uninstall torchvision timm."
    ) from error

__all__ = ["EMBEDDED", "Loaded", "device_of", "load"]

EMBEDDED = "embedded"
"""The name of the model that ships with foveate."""


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


def load(name: str, device: torch.device, *, dtype: str = "auto", attention: str = "auto") -> Loaded:
    """Load a model and its processor.

    Args:
        name: A hub id, a local folder, or "embedded".
        device: Where it goes; see `device_of`.
        dtype: A torch dtype's name; "auto" is the checkpoint's own, and float32 on a CPU.
        attention: A kernel that transformers knows; "auto" is the model's default.

    Raises:
        InputError: If there is no such model, it has no safetensors, its weights are not exactly those of its config,
            or it needs code of its own.
        UnsupportedError: If no family serves it.
    """
    place = str(embedded.path()) if name == EMBEDDED else name
    if place.startswith((".", "/", "~")) and not Path(place).expanduser().is_dir():
        raise InputError(f"There is no folder {place}. Give a hub id or a local folder that holds a model.")
    place = str(Path(place).expanduser()) if place.startswith("~") else place
    with _explained(name):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _check_family(config)
        model, report = AutoModelForImageTextToText.from_pretrained(
            place,
            config=config,
            dtype=_dtype(dtype, device),
            attn_implementation=None if attention == "auto" else attention,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and refused below by name
            output_loading_info=True,
        )
        _check_weights(name, report)
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    return Loaded(name, model.to(device).eval(), processor)


def device_of(name: str) -> torch.device:
    """The device of this name; "auto" is the first accelerator there is, else the CPU.

    Raises:
        UnsupportedError: If torch does not have it here.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return here or torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", here.type if here else "cpu"):
            raise RuntimeError("torch sees no such accelerator")
        torch.empty(0, device=device)
    except RuntimeError as error:
        raise UnsupportedError(
            f"The device {name} is not available here. Use auto, cpu, or one that torch sees."
        ) from error
    return device


def _check_family(config: Any) -> None:
    if config.model_type not in families():
        raise no_family(config.model_type)


def _check_weights(name: str, report: Mapping[str, Any]) -> None:
    """Refuse what transformers would fill at random or leave out: its loading report, tied weights left out."""
    shapes = [
        f"{key}: {list(stored)} in place of {list(expected)}" for key, stored, expected in report["mismatched_keys"]
    ]
    problems = {
        ("is missing", "are missing"): report["missing_keys"],
        ("is unexpected", "are unexpected"): report["unexpected_keys"],
        ("has another shape", "have other shapes"): shapes,
    }
    parts = []
    for (singular, plural), keys in problems.items():
        if keys:
            verb = f"weight {singular}" if len(keys) == 1 else f"weights {plural}"
            parts.append(f"{len(keys)} {verb} ({_shortened(sorted(keys))})")
    if parts:
        raise InputError(
            f"The weights of model {name!r} are not those of its config: {'; '.join(parts)}. "
            "Download it again, or use a checkpoint that was saved for this architecture."
        )


def _shortened(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f", … and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _dtype(name: str, device: torch.device) -> "torch.dtype | str":
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedError(f"There is no number format {name}. Use auto, float32, bfloat16 or float16.")
    return dtype


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what transformers and the hub raise for a model that cannot be loaded into one line."""
    try:
        yield
    except FoveateError:
        raise
    except ImportError as error:
        line = _first_line(error)
        hint = ""
        if "torchvision" in line.lower():
            hint = " It must belong to your torch: pip install 'foveate[vision]'."
        elif "FlashAttention" in line:
            hint = " Install it, or take another attention kernel, such as sdpa."
        raise InputError(f"Model {name!r} needs a package that is missing: {line}{hint}") from error
    except RuntimeError as error:
        if "automatic conversion of the weights" not in str(error):
            raise
        raise InputError(
            f"Model {name!r} cannot be loaded: its experts' weights do not fit together. "
            "Download it again, or use a checkpoint that was saved for this architecture."
        ) from error
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
    sentences, stop, _ = text.rpartition(". ")
    return f"{sentences}." if stop else f"{text}."
