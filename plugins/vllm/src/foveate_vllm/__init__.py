"""Foveate inside vLLM: models that drop vision tokens, for those who ask for them by name (docs/guides/vllm.md)."""

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
"""Architectures, and the modules of this package that they are in; those of all other models are in `generic`."""


def module_of(architecture: str) -> str:
    """The module of this package that has an architecture."""
    return MODELS.get(architecture, "generic")


class Configuring:
    """What vLLM asks when it makes the configuration of an engine for one of the architectures."""

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Do what vLLM does for the model; refuse what cannot work, and set what stages between layers need."""
        from foveate_vllm.scheduler import configure

        stock = _stock_config(vllm_config.model_config.architecture)
        if stock is not None:
            stock.verify_and_update_config(vllm_config)
        configure(vllm_config)

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        """Asked earlier, about the model alone: do what vLLM does for it."""
        stock = _stock_config(model_config.architecture)
        if stock is not None:
            stock.verify_and_update_model_config(model_config)


def _stock_config(architecture: str) -> Any:
    """What vLLM asks for its own model of this kind, if anything."""
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    return MODELS_CONFIG_MAP.get(architecture.removeprefix("Foveate"))


def register() -> None:
    """Tell vLLM the architectures by name. Nothing is imported or changed until one is asked for."""
    from vllm import ModelRegistry
    from vllm.model_executor.models import registry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    multimodal = getattr(registry, "_MULTIMODAL_MODELS", {})  # looked for by `host`
    for architecture in dict.fromkeys([*MODELS, *(f"Foveate{name}" for name in multimodal)]):
        module = f"{__name__}.{module_of(architecture)}"
        ModelRegistry.register_model(architecture, f"{module}:{architecture}")
        MODELS_CONFIG_MAP[architecture] = Configuring
