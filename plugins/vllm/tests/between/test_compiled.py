"""A compiled decoder beside stages: steps with images run layer by layer, and all others what was compiled."""

import pytest
import torch

from tests.between.models import METHODS, NEAR, SIX, Reference, answers, engine, misses

pytest.importorskip("vllm")


@pytest.fixture
def dynamo(monkeypatch):
    """Compiling is on, in a process that began without; counts what was compiled."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    counters = torch._dynamo.utils.counters
    counters.clear()
    return counters


@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]])
def test_a_compiled_decoder_answers_as_on_transformers(llava_folder, method, dynamo, monkeypatch):
    from vllm.model_executor.models.llama import LlamaModel

    eager = []
    forward = LlamaModel.forward

    def noted(self, *args, **options):
        if not torch.compiler.is_compiling():
            eager.append(1)
        return forward(self, *args, **options)

    monkeypatch.setattr(LlamaModel, "forward", noted)
    reference = Reference(llava_folder)
    # Dynamo's own backend compiles nothing, so that this takes seconds: what counts is which steps run its graph.
    options = {"enforce_eager": False, "compilation_config": {"backend": "eager"}}
    with engine(llava_folder, method, **options) as made:
        for got, ask in zip(answers(made, SIX, 12), SIX, strict=True):
            assert misses(got, reference.answer(ask, method, 12)) < NEAR
    assert dynamo["stats"]["unique_graphs"] > 0
    assert len(eager) == 3  # two steps with pictures fill the slots, and SIX takes three
