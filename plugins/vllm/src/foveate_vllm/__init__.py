"""Foveate inside vLLM: model architectures, requested by name, that drop vision tokens (docs/guides/vllm.md)."""

from typing import Any

__all__ = ["module_of", "register"]

MODELS = {
    "FoveateLlavaForConditionalGeneration": "llava",
    "FoveateLlavaNextForConditionalGeneration": "llava_next",
    "FoveateQwen2VLForConditionalGeneration": "qwen",
    "FoveateQwen2_5_VLForConditionalGeneration": "qwen",
    "FoveateQwen3VLForConditionalGeneration": "qwen",
    "FoveateQwen3VLMoeForConditionalGeneration": "qwen",
    "FoveateQwen3_5ForConditionalGeneration": "qwen",
    "FoveateQwen3_5MoeForConditionalGeneration": "qwen",
    "FoveateGlm4vForConditionalGeneration": "qwen",
    "FoveateGlm4vMoeForConditionalGeneration": "qwen",
}
"""Architectures and the modules of this package that define them. All other models are in `generic`."""


def module_of(architecture: str) -> str:
    """Return the module of this package that defines an architecture."""
    return MODELS.get(architecture, "generic")


class Configuring:
    """What vLLM calls when it configures an engine for one of the architectures."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Run vLLM's own step for the model, refuse what cannot work, and set what stages between layers need."""
        from foveate_vllm.scheduler import configure

        stock = _stock_config(vllm_config.model_config.architecture)
        if stock is not None:
            stock.verify_and_update_config(vllm_config)
        configure(vllm_config)

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        """Run vLLM's own step for the model config. vLLM calls this earlier."""
        stock = _stock_config(model_config.architecture)
        if stock is not None:
            stock.verify_and_update_model_config(model_config)


def _stock_config(architecture: str) -> Any:
    """Return vLLM's configuring class for its own model of this kind, if any."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    return MODELS_CONFIG_MAP.get(architecture.removeprefix("Foveate"))


def register() -> None:
    """Register the architectures with vLLM by name. Nothing is imported or changed until one is requested."""
    from vllm import ModelRegistry
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    multimodal = getattr(registry, "_MULTIMODAL_MODELS", {})  # `host` checks for it at start
    for architecture in dict.fromkeys([*MODELS, *(f"Foveate{name}" for name in multimodal)]):
        module = f"{__name__}.{module_of(architecture)}"
        ModelRegistry.register_model(architecture, f"{module}:{architecture}")
        MODELS_CONFIG_MAP[architecture] = Configuring
