"""Engines in which Qwen models cannot drop are refused, with the reason."""

from types import SimpleNamespace as Config

import pytest

from foveate.errors import SettingError, UnsupportedError
from foveate_vllm import guards


def config(parallel=None, media=None, **changes):
    """A vLLM config with nothing special but this."""
    usual = {
        "parallel_config": Config(**{"pipeline_parallel_size": 1, "tensor_parallel_size": 2, **(parallel or {})}),
        "model_config": Config(
            multimodal_config=Config(**{"video_pruning_rate": None, "mm_encoder_tp_mode": "weights", **(media or {})})
        ),
        "speculative_config": None,
        "lora_config": Config(enable_tower_connector_lora=False),
        "compilation_config": Config(compile_mm_encoder=False),
    }
    return Config(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline_parallel_size"),
        ({"media": {"video_pruning_rate": 0.5}}, "video_pruning_rate"),
        ({"media": {"mm_encoder_tp_mode": "data"}}, "mm_encoder_tp_mode"),
        ({"speculative_config": Config()}, "speculative"),
        ({"lora_config": Config(enable_tower_connector_lora=True)}, "LoRA"),
        ({"compilation_config": Config(compile_mm_encoder=True)}, "compiled"),
    ],
)
def test_an_engine_is_refused_with_the_reason(changes, reason):
    with pytest.raises(UnsupportedError, match=reason):
        guards.refuse_engine_of_mrope(config(**changes))


def test_an_engine_with_nothing_special_is_taken():
    guards.refuse_engine_of_mrope(config())
    guards.refuse_engine_of_mrope(config(lora_config=None))


def test_text_must_follow_an_image():
    guards.refuse_image_at_end(5, 6)
    with pytest.raises(SettingError, match="ends in an image"):
        guards.refuse_image_at_end(6, 6)
