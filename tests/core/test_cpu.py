"""Whether the CPU computes bfloat16, and to whom that is told."""

import platform
from pathlib import Path

import pytest
import torch

from foveate.core.cpu import bfloat16_hint, computes_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "computes"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64", "bf16": True, "sve_bf16": True}, False),
        ({}, False),
    ],
)
def test_instructions_of_x86_for_bfloat16_count(monkeypatch, capabilities, computes):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert computes_bfloat16() is computes


def test_where_torch_has_no_kernels_for_them_or_does_not_say_there_are_none(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not computes_bfloat16()
    monkeypatch.undo()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_bfloat16()


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not Path("/proc/cpuinfo").exists() or not hasattr(torch.cpu, "get_capabilities"),
    reason="only Linux on x86 lists them, and only newer torch says",
)
def test_torch_says_what_the_kernel_says():
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert computes_bfloat16() == bool({"avx512_bf16", "amx_bf16"} & words)


@pytest.mark.parametrize("computes", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_only_a_float32_model_on_a_cpu_that_computes_it_gets_the_hint(monkeypatch, device, dtype, computes):
    monkeypatch.setattr("foveate.core.cpu.computes_bfloat16", lambda: computes)
    hint = bfloat16_hint(torch.device(device), dtype)
    assert (hint is not None) == (computes and dtype == torch.float32 and device == "cpu")
    if hint:
        assert "dtype bfloat16 may be faster" in hint
