"""Continuous batching: pages of keys and values that all layers share, and no pictures. Refused, on both ways in."""

import copy
import logging

import pytest
from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

import foveate as fv
from tests.models import batch, generate, tiny
from tests.setups.running import METHOD

SETTINGS = {
    "generation_config": GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0),
    "continuous_batching_config": ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64),
}
PROMPTS = [[1, 5, 6, 7], [1, 8]]


@pytest.fixture
def model():
    return copy.deepcopy(tiny("llava"))


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("ContinuousBatchingLogger").propagate = False


def drawn(outputs):
    return [(output.generated_tokens, output.error) for output in outputs.values()]


def test_it_is_refused_inside_a_context_and_works_again_after(model):
    before = drawn(model.generate_batch(PROMPTS, **SETTINGS))
    assert [error for _, error in before] == [None, None]
    with fv.drop(model, METHOD) as trace:
        for call in (
            lambda: model.generate_batch(PROMPTS, **SETTINGS),
            lambda: model.init_continuous_batching(**SETTINGS),
            lambda: model.continuous_batching_context_manager(**SETTINGS).__enter__(),
        ):
            with pytest.raises(fv.UnsupportedError, match="Continuous"):
                call()
        generate(model, batch("llava", ["tit"]), new_tokens=2)
    assert trace.retention[0] < 1
    assert drawn(model.generate_batch(PROMPTS, **SETTINGS)) == before


def test_requests_of_a_manager_made_before_the_context_fail_with_the_reason(model):
    manager = model.init_continuous_batching(**SETTINGS)
    manager.start()
    try:
        with fv.drop(model, METHOD) as trace:
            request = manager.add_request(PROMPTS[0], max_new_tokens=3)
            result = manager.get_result(request, timeout=60)
    finally:
        manager.stop(block=True, timeout=60)
    assert "use generate with a padded batch" in result.error
    assert result.generated_tokens == []
    assert trace.history == []
