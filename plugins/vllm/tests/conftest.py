"""What every test inside vLLM needs: `make test-vllm` runs them, in an environment of their own."""

import importlib.util
import os

import pytest

from tests import checkpoints, checkpoints_qwen

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


@pytest.fixture(scope="module", params=checkpoints_qwen.NAMES)
def name(request):
    """Each Qwen family."""
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """A tiny random model of this Qwen family."""
    return checkpoints_qwen.qwen_checkpoint(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def reference(folder):
    """This model in transformers."""
    from tests.qwen_models import Reference  # after the environment is set

    return Reference(folder)
