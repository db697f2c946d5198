"""Models from the hub, a local folder, or this package: safetensors only, never remote code."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from foveate import embedded
from foveate.ask.quiet import quiet
from foveate.ask.vlm import VLM
from foveate.errors import FoveateError, InputError, UnsupportedError
from foveate.registry import families, no_family

__all__ = ["EMBEDDED", "device_of", "is_folder", "load", "random_model"]

EMBEDDED = embedded.NAME
"""The name of the model that ships with foveate."""


def load(
    name: str | Path = EMBEDDED,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
) -> VLM:
    """Load a model and its processor, ready to be asked.

        vlm = fv.load()                                              # the small model that ships with foveate
        vlm = fv.load("llava-hf/llava-1.5-7b-hf", device="cuda", dtype="bfloat16")

    Only safetensors are read, and code that comes with a model is never run.

    Args:
        name: A hub id, a local folder, or "embedded".
        device: Such as "cpu", "cuda:1" or "mps"; "auto" is the first accelerator there is, else the CPU.
        dtype: A torch dtype or its name; "auto" is the checkpoint's own, and float32 on a CPU.
        attention: A kernel that transformers knows, such as "sdpa"; "auto" is the model's default.

    Raises:
        InputError: If there is no such model, it has no safetensors, its weights are not exactly those of its config,
            or it needs code of its own.
        UnsupportedError: If no family serves it, or the device, dtype or kernel is not available.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"A model is a hub id or a folder; got {name!r}.")
    name = str(name)
    place = _place(name)
    target = device_of(device)
    with _explained(name), quiet(bars=not is_folder(name)):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        _check_family(config)
        model, report = AutoModelForImageTextToText.from_pretrained(
            place,
            config=config,
            dtype=_dtype(dtype, target),
            attn_implementation=_kernel(attention),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and refused below by name
            output_loading_info=True,
        )
        _check_weights(name, report)
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False)
    return VLM(model.to(target).eval(), processor, name=name)


def random_model(
    config: Any, device: torch.device, dtype: torch.dtype, *, attention: str = "auto", seed: int = 0
) -> Any:
    """A model of this config with random weights, made on the device in the dtype, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=_kernel(attention))
    return model.eval()


def is_folder(name: str) -> bool:
    """Whether a model's name is a folder here, or is written like one: nothing is then downloaded."""
    return name == EMBEDDED or name.startswith((".", "/", "~")) or Path(name).is_dir()


def _place(name: str) -> str:
    """The folder or hub id that a name stands for."""
    if name == EMBEDDED:
        return str(embedded.path())
    if not name.startswith((".", "/", "~")):
        return name
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise InputError(f"There is no folder {name}. Give a hub id or a local folder that holds a model.")
    return str(folder)


def device_of(name: str | torch.device) -> torch.device:
    """The device of this name; "auto" is the first accelerator there is, else the CPU.

    Raises:
        UnsupportedError: If torch does not have it here.
    """
    here = torch.device("cpu")
    if torch.accelerator.is_available():
        here = torch.accelerator.current_accelerator() or here
    if name == "auto":
        return here
    try:
        device = torch.device(name)
        if device.type not in ("cpu", here.type):
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


def _kernel(attention: str) -> str | None:
    """The kernel as transformers wants it: None is the model's default."""
    return None if attention == "auto" else attention


def _dtype(name: str | torch.dtype, device: torch.device) -> "torch.dtype | str":
    if isinstance(name, torch.dtype):
        return name
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
