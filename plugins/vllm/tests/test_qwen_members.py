"""The other models of the Qwen way: what they keep, and where their rows stand, is what it is in transformers."""

import pytest

from tests import checkpoints_qwen
from tests.qwen_models import Ask, Reference, differences, engine_of, picture, run, shut

NEAR = 1e-4
ASKS = (
    Ask([picture(5, 8)], rate={"tokens": 11}),
    Ask([picture(9, 3, 1)], "A longer question about what can be read there?", {"retention": 0.3}),
    Ask(question="No picture at all?"),
    Ask([picture(6, 6, 2), picture(7, 4, 3)], "Which?", {"retention": 0.25}),
    Ask([picture(4, 9, 4)], before="A long story that comes before the picture, with many words.", rate={"tokens": 9}),
    Ask([picture(4, 4, 5)], rate={"retention": 1.0}),
)


@pytest.mark.parametrize(
    ("name", "method"),
    [("qwen2_vl", "visionzip"), ("qwen2_vl", "divprune"), ("qwen3_vl_moe", "visionzip")],
)
def test_a_member_answers_as_on_transformers(name, method, tmp_path):
    folder = checkpoints_qwen.qwen_checkpoint(name, tmp_path)
    reference = Reference(folder)
    checkpoints_qwen.experts_as_on_the_hub(folder)
    engine = engine_of(name, folder, method)
    try:
        outputs = run(engine, ASKS)
    finally:
        shut(engine)
    for ask, output in zip(ASKS, outputs, strict=True):
        assert differences(output, reference.answer(ask, method)) < NEAR, ask
