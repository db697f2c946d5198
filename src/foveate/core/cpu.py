"""What the CPU computes itself, as torch says."""

from collections.abc import Mapping
from typing import Any

import torch

BFLOAT16 = ("avx512_bf16", "amx_bf16")
"""The instructions of x86 for bfloat16, as torch names them. Others were not measured."""


def computes_bfloat16() -> bool:
    """True if torch computes bfloat16 with instructions of this CPU. False if torch is too old to say."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    has_kernels: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_kernels and any(capabilities.get(name) for name in BFLOAT16)


def bfloat16_hint(device: torch.device, dtype: torch.dtype) -> str | None:
    """One sentence that bfloat16 may be faster for a model of this dtype on this device. None if nothing says so."""
    if device.type != "cpu" or dtype != torch.float32 or not computes_bfloat16():
        return None
    return (
        "This CPU computes in bfloat16, and the model is in float32: dtype bfloat16 may be faster without dropping "
        "anything (foveate bench --model NAME --ladder measures it)."
    )
