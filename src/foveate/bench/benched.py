"""The subject of a benchmark: a model and its prompt, from a named shape or a checkpoint, and methods at budgets."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate import registry
from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.vlm import VLM
from foveate.bench.shapes import NamedShape
from foveate.bench.workload import TEXT, Workload, synthetic
from foveate.contract.method import Method
from foveate.core.cpu import bfloat16_hint, computes_bfloat16
from foveate.errors import BudgetError, SettingError
from foveate.eval.plan import USUAL, contenders_at
from foveate.methods.random import Random
from foveate.naming import RETENTION, parse
from foveate.plain.flags import PromptRequest
from foveate.runs.versions import commit, versions

SIDE = 672  # side of the noise pictures that a checkpoint gets, in pixels
MOST = 64  # most pictures that a checkpoint gets: its processor prepares all of them on the CPU

ALL = "all"
"""Name that stands for every registered method that takes a budget."""


@dataclass(frozen=True, slots=True, eq=False)
class Benched:
    """A model and its prompt.

    Attributes:
        name: The name of the shape, or the checkpoint as the user wrote it.
        shape: The shape of a model with random weights; None for a checkpoint.
        model: The model.
        workload: The prompt.
    """

    name: str
    shape: NamedShape | None
    model: PreTrainedModel
    workload: Workload


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a shape's weights. "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def from_shape(
    shape: NamedShape, device: torch.device, dtype: torch.dtype, attention: str, size: PromptRequest
) -> Benched:
    """Build a shape with random weights, and a prompt with noise for its pictures.

    Raises:
        SettingError: If the shape does not take such a prompt.
    """
    synthetic(shape, size)  # reject a bad prompt before making weights
    model = shape.build(device, dtype, attention, size.seed)
    return Benched(shape.name, shape, model, synthetic(shape, size, device, dtype))


def from_checkpoint(vlm: VLM, size: PromptRequest) -> Benched:
    """Prepare a checkpoint and a prompt of noise pictures and words, made by the checkpoint's own processor.

    The prompt has the number of text tokens asked for, or slightly fewer if a word takes several tokens. Removes the
    model's end-of-sequence token, so that its answers have a fixed length.

    Raises:
        SettingError: If frames are asked for, more than 64 pictures, or less text than the chat template alone takes.
    """
    if size.images is not None and size.images > MOST:
        raise SettingError(f"A checkpoint takes at most {MOST} pictures of noise; got {size.images}. Ask for fewer.")
    if size.frames is not None:
        raise SettingError("Frames go with a named shape; a checkpoint takes pictures of noise. Give images instead.")
    vlm.model.generation_config.eos_token_id = None
    rng = np.random.default_rng(size.seed)
    pictures = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(size.images or 1)]
    prompt = vlm.prepare(pictures, "word")
    least = prompt.text_tokens
    asked = size.text_tokens or max(least, TEXT)
    if asked < least:
        raise SettingError(f"{asked} text tokens are too few: this model's template alone takes {least}. Ask for more.")
    if asked > least:
        a_word = vlm.prepare(pictures, "word word").text_tokens - least  # several tokens if the vocabulary is small
        prompt = vlm.prepare(pictures, " ".join(["word"] * (1 + (asked - least) // a_word)))
    workload = Workload(
        inputs={name: torch.cat([tensor] * size.batch) for name, tensor in prompt.inputs.items()},
        batch=size.batch,
        text_tokens=prompt.text_tokens,
        sizes=prompt.sizes,
        tower_images=None if prompt.tower_images is None else tuple(prompt.tower_images),
        grids=prompt.grids,
        videos=prompt.videos,
    )
    return Benched(vlm.name, None, vlm.model, workload)


# -- methods --------------------------------------------------------------------------------------------------


def named_methods(names: Sequence[str]) -> dict[str, Method]:
    """The methods with these names. No names mean `USUAL`; `ALL` alone means every method that takes a budget.

    Needs no model, so it can reject a wrong name before one is loaded.

    Raises:
        FoveateError: If there is no such method, preset or file, or a setting is invalid.
    """
    if tuple(names) != (ALL,):
        return {name: parse(name) for name in names or USUAL}
    methods = {name: kind() for name, kind in sorted(registry.methods().items()) if kind is not Random}
    return {name: method for name, method in methods.items() if method.open}


def budgeted_methods(
    methods: Mapping[str, Method],
    model: PreTrainedModel | PreTrainedConfig,
    vision_tokens: int,
    *,
    tokens: Sequence[float] = (),
    retention: Sequence[float] = (),
    seed: int = 0,
    passes_over: type[SettingError] = BudgetError,
) -> tuple[dict[str, Method], dict[str, str]]:
    """Set every method to every budget.

    Args:
        methods: Methods by name. A method with its own schedule does not change.
        model: A model or its config.
        vision_tokens: Vision tokens of the prompt.
        tokens: Budgets, in mean vision tokens per decoder layer.
        retention: Budgets as shares of the vision tokens. Without `tokens` and `retention`, a method given by its bare
            name keeps a third, and any other what its settings say.
        seed: Seed of methods that drop at random.
        passes_over: Errors that only exclude a method; all others are raised.

    Returns:
        The methods by the names of their rows, and the reasons why others cannot meet their budgets, by name.

    Raises:
        SettingError: If a budget exceeds the prompt, or no method can meet any budget.
    """
    if tokens and max(tokens) > vision_tokens:
        raise SettingError(
            f"A budget of {max(tokens):g} tokens is too large: the prompt has {vision_tokens} vision tokens."
        )
    shares = tuple(retention) or tuple(count / vision_tokens for count in tokens) or (RETENTION,)
    config = getattr(model, "config", model)
    feasible: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    for contender in contenders_at(
        methods, config, shares, vision_tokens, (seed,), given=bool(tokens or retention), passes_over=passes_over
    ):
        if contender.budget is None:
            row = contender.name
        else:
            row = f"{contender.name} {contender.budget * vision_tokens:.0f}"
        if contender.draws:
            feasible[row] = contender.draws[0]
        else:
            infeasible[row] = contender.infeasible
    if not feasible:
        raise SettingError(" ".join(infeasible.values()))
    return feasible, infeasible


# -- the conditions of a measurement --------------------------------------------------------------------------


def conditions(
    benched: Benched, device: torch.device, *, new_tokens: int, clock: str, seed: int, command: str = ""
) -> dict[str, object]:
    """The conditions on which the results depend, as plain values: model, machine, versions, prompt.

    Args:
        benched: The model and its prompt.
        device: The device that runs the model.
        new_tokens: Length of every answer, in tokens.
        clock: "wall" or "cpu".
        seed: Seed of weights, noise, order and random dropping.
        command: The command line that the user typed.
    """
    config = getattr(benched.model, "config", benched.model)
    workload, shape = benched.workload, benched.shape
    return {
        "what": "time of generate with and without dropping, interleaved in one process, as ratios of paired rounds",
        "command": command,
        "model": {
            "name": benched.name,
            "weights": "random" if shape else "the checkpoint's",
            "sizes_of": shape.of if shape else benched.name,
            "model_type": config.model_type,
            "device": str(device),
            "dtype": str(benched.model.dtype).removeprefix("torch."),
            "attention": config.get_text_config()._attn_implementation,
        },
        "machine": {
            "chip": chip(device),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
            "bfloat16": device.type != "cpu" or computes_bfloat16(),
        },
        "versions": versions() | {"python": platform.python_version()},
        "commit": commit(),
        "seed": seed,
        "clock": clock,
        "batch": workload.batch,
        "text_tokens": workload.text_tokens,
        "vision_tokens": list(workload.sizes),
        "new_tokens": new_tokens,
    }


def title_of(conditions: Mapping[str, Any]) -> str:
    """The title of a table: model, device and prompt, in one line."""
    model = conditions["model"]
    weights = "its own weights"
    if model["weights"] == "random":
        weights = "random weights"
    return (
        f"{model['name']} ({weights}), {model['device']}, {model['dtype']}: batch {conditions['batch']}, "
        f"{sum(conditions['vision_tokens'])} vision and {conditions['text_tokens']} text tokens, "
        f"answers of {conditions['new_tokens']}"
    )


def recast_dtype(model: PreTrainedModel) -> torch.dtype | None:
    """The dtype that a ladder also times: bfloat16 for a float32 model on a CPU that computes it. Else None."""
    if bfloat16_hint(model.device, model.dtype) is None:
        return None
    return torch.bfloat16


def machine_notes(model: PreTrainedModel, *, ladder: bool) -> list[str]:
    """Notes on what the user of a CPU may change: the threads, below a ladder, else the dtype."""
    if model.device.type != "cpu":
        return []
    if ladder:
        return [f"Threads: {torch.get_num_threads()}. Use one for each free core (OMP_NUM_THREADS)."]
    hint = bfloat16_hint(model.device, model.dtype)
    return [hint] if hint else []


def chip(device: torch.device) -> str:
    """The name of the GPU or CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")  # on Linux, platform.processor() gives only the architecture
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
