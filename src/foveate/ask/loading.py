"""Load models from the hub, a local folder, or this package: safetensors only, never remote code."""

import functools
import importlib.util
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from foveate import embedded
from foveate._transformers import cached_file
from foveate.ask.loaded import quiet
from foveate.ask.prompt import placeholders
from foveate.ask.vlm import VLM
from foveate.core.cpu import bfloat16_hint
from foveate.core.fields import check_call
from foveate.core.tapes import refuse_without_graphs
from foveate.core.tensors import seeded
from foveate.errors import InputError, UnsupportedError
from foveate.plain.folders import CONFIG, INDEX, WEIGHTS_OR_INDEX, ModelFolder, folder_of
from foveate.plain.upstream import explain, ignored, install_line, trim, warn_caller
from foveate.registry import family_kind

EMBEDDED = embedded.NAME
"""The name of the model that ships with foveate."""
FUTURE = ignored(FutureWarning)
"""transformers' warnings for peft."""


def reloading(vlm: VLM) -> Callable[[], VLM]:
    """Return a function with which another process loads the same model in the same way."""
    setup = {"cuda_graphs": False} | vlm.card.to_dict()
    return partial(load, vlm.name, **{name: setup[name] for name in ("device", "dtype", "attention", "cuda_graphs")})


@check_call("A model")
def load(
    name: str | Path = EMBEDDED,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attention: str = "auto",
    weights: bool = True,
    cuda_graphs: bool = False,
) -> VLM:
    """Load a model and its processor.

        vlm = fv.load()                                              # the small model that ships with foveate
        vlm = fv.load("llava-hf/llava-1.5-7b-hf", device="cuda", dtype="bfloat16")
        vlm = fv.load("my-lora")                                     # a PEFT adapter on the base model that it names

    Only safetensors are read, and code that comes with a model is never run.

    Args:
        name: A hub id, a local folder (of a model or a PEFT adapter), "embedded", or "embedded-films" for videos
            (168 px, 144 tokens per frame).
        device: A device such as "cpu", "cuda:1" or "mps". "auto" is the first accelerator, else the CPU.
        dtype: A torch dtype or its name. "auto" is the checkpoint's dtype, and float32 on a CPU.
        attention: An attention kernel of transformers, such as "sdpa". "auto" is the model's default.
        weights: If False, do not load the weights. Prompts can be prepared and their tokens, FLOPs and bytes counted
            (`VLM.prepare`, `Prompt.cost`), but not answered.
        cuda_graphs: Run the vision tower, the prefill and each decode step as CUDA graphs; see `foveate.drop`.
            Experimental.

    Warns:
        UserWarning: Once, if `dtype` is "auto" and the CPU computes in bfloat16. Not for the models of this package.

    Raises:
        InputError: If the model does not exist, has no safetensors, has weights that do not match its config, or needs
            its own code. For an adapter: if its base model is missing or does not fit.
        SettingError: If `cuda_graphs` is set and the device has no CUDA graphs.
        UnsupportedError: If no family supports the model, the device, dtype or kernel is not available, or an adapter
            needs peft and it is not installed.
    """
    name = str(name)
    folder = embedded.path() if name in embedded.NAMES else folder_of(name)
    if folder is not None and name not in embedded.NAMES:
        ModelFolder(name, folder).check()
    base = None if folder is None else ModelFolder(name, folder).base
    if folder is not None and base is not None:
        if importlib.util.find_spec("peft") is None:
            raise UnsupportedError(f"Model '{trim(name)}' is an adapter, which needs peft: {install_line('peft')}.")
        with ModelFolder(name, folder).loading_base(base):
            below = load(
                base, device=device, dtype=dtype, attention=attention, weights=weights, cuda_graphs=cuda_graphs
            )
        if not weights:
            return below
        return _with_adapter(name, folder, below)
    place = str(folder or name)
    target = device_of(device)
    if cuda_graphs:
        refuse_without_graphs(target)
    number_format = _dtype(dtype, target)
    local = folder is None and _is_unreachable()
    with quiet(bars=folder is None):
        with explain(name, "config"):
            config = AutoConfig.from_pretrained(place, trust_remote_code=False, local_files_only=local)
        family_kind(config.model_type)
        for number in placeholders(config):
            if abs(number) >= 2**31:  # too large for a tensor of ids
                raise InputError(
                    f"Model '{trim(name)}' cannot be loaded: {number} in its config.json is no id of an image token. "
                    "Download it again."
                )
        if not weights and name not in embedded.NAMES:
            with torch.device("meta"), explain(name, "config"):
                bare = AutoModelForImageTextToText.from_config(config, dtype=config.dtype if dtype == "auto" else dtype)
            return VLM(bare.eval(), _processor(name, place, local), name=name)
        if folder is None:
            _check_index(name, config, local)
        with explain(name, "weights"):
            model, report = AutoModelForImageTextToText.from_pretrained(
                place,
                config=config,
                dtype=number_format,
                attn_implementation=None if attention == "auto" else attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=local,
                ignore_mismatched_sizes=True,  # `_check_weights` refuses them by name
                output_loading_info=True,
            )
        _check_weights(name, report)
        processor = _processor(name, place, local)
    if name == embedded.FILMS:
        from foveate.embedded.film_model import for_films  # only this model needs it

        model, processor = for_films(model, processor)
    if dtype == "auto" and name not in embedded.NAMES and bfloat16_hint(target, model.dtype):
        _warn_of_float32()
    return VLM(model.to(target).eval(), processor, name=name, cuda_graphs=cuda_graphs)


@functools.cache
def _warn_of_float32() -> None:
    """Warn once that bfloat16 may be faster on this CPU."""
    warn_caller(bfloat16_hint(torch.device("cpu"), torch.float32) or "")


def _processor(name: str, place: str, local: bool = True) -> ProcessorMixin:
    with explain(name, "processor"):
        processor = AutoProcessor.from_pretrained(place, trust_remote_code=False, local_files_only=local)
    # If transformers does not understand a processor's files, it returns only a part, such as the tokenizer.
    if not hasattr(processor, "tokenizer") or not callable(processor):
        raise InputError(
            f"Model '{trim(name)}' cannot be loaded: its processor is only a {type(processor).__name__}. "
            "Correct processor_class in processor_config.json, or download it again."
        )
    return processor


def _with_adapter(name: str, folder: Path, base: VLM) -> VLM:
    """Wrap a base model with the PEFT adapter in a folder. Use the folder's processor if it has one.

    Unlike `PeftModel.from_pretrained`, which only warns, this refuses missing and unexpected weights.
    """
    processor = base.processor
    with quiet(), FUTURE:
        with explain(name, "adapter"):
            import peft

            config = peft.PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            config.base_model_name_or_path = None  # else peft warns if it spells the base model's name differently
            model = peft.get_peft_model(base.model, config)
            report = model.load_adapter(str(folder), "default", torch_device=str(base.model.device))
        _check_weights(name, {**report._asdict(), "mismatched_keys": ()}, of="base model")
        if ModelFolder(name, folder).has_processor():
            processor = _processor(name, str(folder))
    return VLM(model.eval(), processor, name=name, cuda_graphs=base.cuda_graphs)


def random_model(
    config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, *, attention: str = "auto", seed: int = 0
) -> PreTrainedModel:
    """Make a model with random weights on the device, in evaluation mode."""
    kernel = None if attention == "auto" else attention
    with seeded(device, seed), device:
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=kernel)
    return model.eval()


def is_folder(name: str) -> bool:
    """Return whether a model's name is a local folder or is spelled like one, so nothing is downloaded."""
    return name in embedded.NAMES or name.startswith((".", "/", "~")) or folder_of(name) is not None


def _is_unreachable() -> bool:
    """Return whether the hub's host name does not resolve. Then only downloaded files are used, without a timeout."""
    if constants.HF_HUB_OFFLINE or getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _check_index(name: str, config: PreTrainedConfig, local: bool) -> None:
    """Refuse a hub model whose weight index lists files outside its folder or other than safetensors."""
    explicit = getattr(config, "transformers_weights", None)
    if explicit is not None:
        ModelFolder(name, Path()).check_weight_names(CONFIG, [explicit], WEIGHTS_OR_INDEX)
    file = explicit or INDEX
    if not file.endswith(".json"):
        return
    with explain(name, "weights"):
        path = cached_file(name, file, local_files_only=local, _raise_exceptions_for_missing_entries=False)
    if path is not None:
        ModelFolder(name, Path(path).parent).check_index(Path(path).name)


def device_of(name: str | torch.device) -> torch.device:
    """Return the device of this name. "auto" is the first accelerator, else the CPU.

    Raises:
        UnsupportedError: If torch does not have the device.
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
            f"The device {name} is not available here. Use auto, cpu, or an accelerator that torch supports here."
        ) from error
    return device


def _check_weights(name: str, report: Mapping[str, Any], of: str = "config") -> None:
    """Refuse weights that transformers or peft would initialise at random or ignore.

    Args:
        name: The model's name for the user.
        report: Its loading report, without tied weights.
        of: What the weights must match, for the message.
    """
    shapes = [
        f"{key}: {list(stored)} instead of {list(expected)}" for key, stored, expected in report["mismatched_keys"]
    ]
    problems = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape": shapes,
    }
    parts = []
    for problem, keys in problems.items():
        if keys:
            more = ", …" if len(keys) > 3 else ""
            parts.append(f"{len(keys)} {problem} ({', '.join(sorted(keys)[:3])}{more})")
    if parts:
        raise InputError(
            f"The weights of model {name!r} do not match its {of}: {'; '.join(parts)}. "
            "Download it again, or use a checkpoint that was saved for this architecture."
        )


def _dtype(name: str | torch.dtype, device: torch.device) -> "torch.dtype | str":
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise UnsupportedError(f"There is no dtype {name}. Use auto, float32, bfloat16 or float16.")
    return dtype
