"""The other models of the Qwen way: what they keep, and where their rows stand, is what it is in transformers."""

from dataclasses import replace

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


def test_a_glm_shows_whole_images_as_stock_vllm_does_and_drops_from_them(tmp_path):
    """Its tiny model answers otherwise in transformers than in vLLM, also to text alone."""
    folder = checkpoints_qwen.qwen_checkpoint("glm4v", tmp_path)
    asks = [replace(ask, mark=checkpoints_qwen.GLM_MARK, rate={}) for ask in ASKS]
    stock = engine_of("glm4v", folder, None)
    wanted = [output.outputs[0].token_ids for output in run(stock, asks)]
    shut(stock)
    engine = engine_of("glm4v", folder, "visionzip")
    whole = run(engine, [replace(ask, rate={"retention": 1.0} if ask.images else {}) for ask in asks])
    assert [output.outputs[0].token_ids for output in whole] == wanted
    (few,) = run(engine, [replace(asks[0], rate={"tokens": 9})])
    assert few.prompt_token_ids.count(engine.model_config.hf_config.image_token_id) == 9
    shut(engine)
