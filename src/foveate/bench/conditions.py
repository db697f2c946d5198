"""What a record says of how it was made: model, machine, versions, prompt."""

import platform
from pathlib import Path
from typing import Any

import torch

from foveate._versions import commit, versions
from foveate.bench.subject import Subject

__all__ = ["conditions", "title_of"]


def conditions(
    subject: Subject, device: torch.device, *, new_tokens: int, clock: str, seed: int, command: str = ""
) -> dict[str, Any]:
    """What figures depend on, as plain values.

    Args:
        subject: The model and its prompt.
        device: Where it runs, or would.
        new_tokens: Length of every answer.
        clock: "wall" or "cpu".
        seed: Of weights, noise, order and random dropping.
        command: What was typed.
    """
    config = getattr(subject.model, "config", subject.model)
    weights, sizes_of = "the checkpoint's", subject.name
    if subject.shape is not None:
        weights, sizes_of = "random", subject.shape.of
    workload = subject.workload
    return {
        "what": "time of generate with and without dropping, interleaved in one process, as ratios of paired rounds",
        "command": command,
        "model": {
            "name": subject.name,
            "weights": weights,
            "sizes_of": sizes_of,
            "model_type": config.model_type,
            "device": str(device),
            "dtype": str(subject.model.dtype).removeprefix("torch."),
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


def title_of(conditions: dict[str, Any]) -> str:
    """What a table or a figure shows, in one line."""
    model = conditions["model"]
    weights = "random weights" if model["weights"] == "random" else "its own weights"
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
