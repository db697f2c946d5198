"""Foveate inside vLLM: models that drop vision tokens, for those who ask for them by name (docs/guides/vllm.md)."""

from typing import Any

__all__ = ["register"]

MODELS = {
    "FoveateLlavaForConditionalGeneration": "llava",
    "FoveateLlavaNextForConditionalGeneration": "llava_next",
    "FoveateQwen2_5_VLForConditionalGeneration": "qwen",
    "FoveateQwen3VLForConditionalGeneration": "qwen",
}
"""Architectures, and the modules of this package that they are in."""


class Configuring:
    """What vLLM asks when it makes the configuration of an engine for one of the architectures."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Refuse what cannot work, and set what stages between layers need."""
        from foveate_vllm.scheduler import configure

        configure(vllm_config)

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """Asked earlier, about the model alone: there is nothing to do."""


def register() -> None:
    """Tell vLLM the architectures by name. Nothing is imported or changed until one is asked for."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture, module in MODELS.items():
        ModelRegistry.register_model(architecture, f"{__name__}.{module}:{architecture}")
        MODELS_CONFIG_MAP[architecture] = Configuring
