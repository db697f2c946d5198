"""What is benched: a model and its prompt, of a named shape or of a checkpoint, and methods at budgets."""

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
from foveate.errors import BudgetError, SettingError
from foveate.eval.plan import USUAL, contenders_at
from foveate.methods.random import Random
from foveate.naming import RETENTION, parse
from foveate.plain.flags import PromptRequest
from foveate.runs.versions import commit, versions

SIDE = 672  # pixels of the noise picture that a checkpoint is shown
MOST = 64  # pictures that a checkpoint is shown: its processor makes pixels of all of them

ALL = "all"
"""Every registered method that takes a budget."""


@dataclass(frozen=True, slots=True, eq=False)
class Benched:
    """A model and its prompt.

    Attributes:
        name: Of the shape, or what the user called the checkpoint.
        shape: Whose sizes it has, with random weights; None of a checkpoint.
        model: The model.
        workload: The prompt.
    """

    name: str
    shape: NamedShape | None
    model: PreTrainedModel
    workload: Workload


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The number format of a shape's weights; "auto" is float32 on a CPU and bfloat16 elsewhere."""
    if name == "auto":
        name = "float32" if device.type == "cpu" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def from_shape(
    shape: NamedShape, device: torch.device, dtype: torch.dtype, attention: str, size: PromptRequest
) -> Benched:
    """A shape with random weights, and noise for its pictures.

    Raises:
        SettingError: If the shape takes no such prompt.
    """
    synthetic(shape, size)  # refuse what cannot be before weights are made
    model = shape.build(device, dtype, attention, size.seed)
    return Benched(shape.name, shape, model, synthetic(shape, size, device, dtype))


def from_checkpoint(vlm: VLM, size: PromptRequest) -> Benched:
    """A checkpoint, and a prompt as its own processor makes it: pictures of noise, and words.

    The prompt has as many tokens of text as asked for, or a few less where words take several. From here on
    the model's answers end where they are told to, not at its end of sequence.

    Raises:
        SettingError: If frames are asked for, more than 64 pictures, or less text than the chat template alone takes.
    """
    if size.images is not None and size.images > MOST:
        raise SettingError(f"A checkpoint is shown at most {MOST} pictures of noise; got {size.images}. Take fewer.")
    if size.frames is not None:
        raise SettingError("A video's frames go with a named shape; a checkpoint is shown pictures of noise: images.")
    vlm.model.generation_config.eos_token_id = None
    rng = np.random.default_rng(size.seed)
    pictures = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(size.images or 1)]
    prompt = vlm.prepare(pictures, "word")
    least = prompt.text_tokens
    asked = size.text_tokens or max(least, TEXT)
    if asked < least:
        raise SettingError(f"A prompt of {asked} tokens of text: this model's template alone takes {least}.")
    if asked > least:
        a_word = vlm.prepare(pictures, "word word").text_tokens - least  # a small vocabulary spells it
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
    """The methods of these names, before any model is made; none stand for `USUAL`, and `ALL` alone for all others.

    Raises:
        FoveateError: If there is no such method, preset or file, or a setting does not fit.
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
    """Every method at every budget, by the name of its row; and why some cannot meet theirs, by name.

    Args:
        methods: By name; one with a schedule of its own stays as it is.
        model: A model or its config.
        vision_tokens: Of the prompt.
        tokens: Budgets, in mean vision tokens a decoder layer.
        retention: The same as shares. Without either, a name alone keeps a third, and others what they say.
        seed: Of methods that drop at random.
        passes_over: Errors of a method that only keep it out; others are raised.

    Raises:
        SettingError: If a budget exceeds the prompt, or no method can meet any.
    """
    if tokens and max(tokens) > vision_tokens:
        raise SettingError(f"A budget of {max(tokens):g} tokens: the prompt has {vision_tokens} vision tokens.")
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


# -- what a record says of how it was made --------------------------------------------------------------------


def conditions(
    benched: Benched, device: torch.device, *, new_tokens: int, clock: str, seed: int, command: str = ""
) -> dict[str, object]:
    """What figures depend on, as plain values: model, machine, versions, prompt.

    Args:
        benched: The model and its prompt.
        device: Where it runs, or would.
        new_tokens: Length of every answer.
        clock: "wall" or "cpu".
        seed: Of weights, noise, order and random dropping.
        command: What was typed.
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
        "machine": {"chip": _chip(device), "threads": torch.get_num_threads(), "system": platform.system()},
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
    """What a table shows, in one line."""
    model = conditions["model"]
    weights = "its own weights"
    if model["weights"] == "random":
        weights = "random weights"
    return (
        f"{model['name']} ({weights}), {model['device']}, {model['dtype']}: batch {conditions['batch']}, "
        f"{sum(conditions['vision_tokens'])} vision and {conditions['text_tokens']} text tokens, "
        f"answers of {conditions['new_tokens']}"
    )


def _chip(device: torch.device) -> str:
    """What computes."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")  # Python itself knows no more than the architecture on Linux
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
