"""GLM-4.1V's tiny model, and its videos, whose placeholders are those of images."""

from typing import Any

import pytest
import transformers

import foveate as fv
from tests import models, tiny_others
from tests.families.qwens import GLM, GLM_TOKENS, glm, other, other_glm_tower, rope
from tests.tiny import TEXT


def config() -> Any:
    text = {**TEXT, "num_key_value_heads": 1, "rope_parameters": rope(1, 2, 1, partial_rotary_factor=1.0)}
    return transformers.Glm4vConfig(text_config=text, vision_config=GLM, **GLM_TOKENS)


TINY = glm(config, "Glm4v")


def other_config() -> Any:
    text = tiny_others.text(7, 3, 3, 24, rope_parameters=tiny_others.mrope(1, 1, 0, partial_rotary_factor=0.5))
    return transformers.Glm4vConfig(text_config=text, vision_config=other_glm_tower(24, 3), **GLM_TOKENS)


OTHER = other(TINY, other_config)


@pytest.mark.parametrize(
    "method",
    [fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4), scope="image"), fv.AveragePool(keep=0.4)],
    ids=lambda one: one.name,
)
def test_a_batch_of_videos_is_its_samples_run_alone(method):
    from tests.invariants.alone import check_alone  # which imports what imports this file

    check_alone(models.tiny("glm4v"), "glm4v", method, ("tvt", "tvtvt", "ttt"))
