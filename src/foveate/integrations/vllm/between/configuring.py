"""Between the layers: what the engine must be set to, asked when vLLM makes its configuration."""

from importlib import import_module
from typing import Any

from foveate.integrations import vllm as plugin
from foveate.integrations.vllm.between import guards
from foveate.integrations.vllm.setting import Rate, Setting

__all__ = ["configure"]

SCHEDULER = "foveate.integrations.vllm.between.scheduler.scheduler"


def configure(config: Any) -> None:
    """Refuse what cannot work, and choose the scheduler, if the method has stages between layers.

    Args:
        config: vLLM's `VllmConfig`.
    """
    architecture = config.model_config.architecture
    module = import_module(f"{plugin.__name__}.{plugin.MODELS[architecture]}")
    model = config.model_config.hf_config
    setting = Setting.of(model, getattr(module, architecture).family)
    Rate.of(config.model_config.multimodal_config.mm_processor_kwargs or {})  # or a refusal
    stages = setting.stages(Rate())
    if not stages.late:
        return
    guards.refuse_stages(stages.late, setting.shape)
    guards.refuse_engine(config)
    config.scheduler_config.scheduler_cls = SCHEDULER
    setattr(model, guards.STEP, config.scheduler_config.max_num_batched_tokens)
