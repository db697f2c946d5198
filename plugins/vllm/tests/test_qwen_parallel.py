"""Qwen models in two processes, each with half of the heads: all ranks take the same cut."""

import pytest

from tests import checkpoints_qwen
from tests.qwen_models import Ask, Reference, differences, engine_of, picture, run, shut

ASKS = (
    Ask([picture(5, 8)], rate={"tokens": 11}),
    Ask([picture(9, 3, 1), picture(4, 6, 2)], "Which?", {"retention": 0.2}),
    Ask(question="No picture at all?"),
)


@pytest.mark.parametrize("name", checkpoints_qwen.NAMES)
@pytest.mark.parametrize("method", ["visionzip"])
def test_two_processes_answer_as_transformers_does(name, method, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    folder = checkpoints_qwen.qwen_checkpoint(name, tmp_path)
    reference = Reference(folder)
    engine = engine_of(name, folder, method, tensor_parallel_size=2, distributed_executor_backend="mp")
    try:
        outputs = run(engine, ASKS)
    finally:
        shut(engine)
    for ask, output in zip(ASKS, outputs, strict=True):
        assert differences(output, reference.answer(ask, method)) < 1e-4, ask
