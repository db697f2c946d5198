"""Between the layers on TRITON_ATTN, a GPU's attention, in Triton's interpreter: all that a GPU runs but compilers."""

import os

import pytest
import torch

from tests.between.models import METHODS, NEAR, SIX, Reference, answers, engine, misses

pytest.importorskip("vllm")
pytestmark = pytest.mark.skipif(
    os.environ.get("VLLM_USE_V2_MODEL_RUNNER") != "1", reason="The interpreter is on where runner V2 is."
)
BACKEND = "vllm.v1.attention.backends.triton_attn.TritonAttentionBackend"


@pytest.fixture
def triton_attn(monkeypatch):
    """The platform names this backend, and answers what its kernels ask of a GPU: a number of warps follows from it.

    vLLM remembers what a platform named, so it is made to forget that before and behind.
    """
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.attention.selector import _cached_get_attn_backend

    _cached_get_attn_backend.cache_clear()
    monkeypatch.setattr(CpuPlatform, "get_attn_backend_cls", classmethod(lambda cls, *args, **named: BACKEND))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    yield
    _cached_get_attn_backend.cache_clear()


@pytest.mark.usefixtures("triton_attn")
def test_steps_that_mix_prompts_and_answers_are_as_on_transformers(llava_folder):
    """One and two images and none over two slots, so that layers of other lengths go through both kinds of step."""
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend

    method, asked = METHODS[0], (SIX[0], SIX[1], SIX[2])
    reference = Reference(llava_folder)
    with engine(llava_folder, method) as llm:
        used = llm.apply_model(lambda model: {layer.self_attn.attn.attn_backend for layer in decoder_of(model).layers})
        assert all(issubclass(backend, TritonAttentionBackend) for backend in used[0])
        for got, ask in zip(answers(llm, asked, 4), asked, strict=True):
            assert misses(got, reference.answer(ask, method, 4)) < NEAR


def decoder_of(model):
    return model.get_language_model().model
