"""What every test inside vLLM needs: `make test-vllm` runs them, in an environment of their own."""

import importlib.util
import os

import pytest

from tests.vllm import checkpoints

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than what is compiled
}

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["*"]
else:  # not for the other tests, which are collected where there is no vLLM
    os.environ |= ENVIRONMENT


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory):
    """The embedded model as vLLM loads it."""
    return checkpoints.embedded_checkpoint(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def next_folder(tmp_path_factory):
    """A tiny random LLaVA-NeXT."""
    return checkpoints.next_checkpoint(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    """A tiny random LLaVA-1.5."""
    return checkpoints.llava_checkpoint(tmp_path_factory.mktemp("llava"))
