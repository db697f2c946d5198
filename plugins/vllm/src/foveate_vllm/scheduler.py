"""Between the layers: what the engine must be set to, and a scheduler that computes prompts with images in one step."""

import functools
from importlib import import_module
from typing import Any

import foveate_vllm as plugin
from foveate_vllm import guards
from foveate_vllm.setting import Rate, Setting

__all__ = ["configure", "scheduler"]


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
    config.scheduler_config.scheduler_cls = f"{__name__}.scheduler"
    setattr(model, guards.STEP, config.scheduler_config.max_num_batched_tokens)


Scheduled = tuple[list[int], int, int, list[int], list[int]]
"""Images to encode, tokens to compute, the encoder's budget behind them, images loaded from elsewhere, and repeated."""


class WholePrompts:
    """Stands in front of a scheduler of vLLM. Other prompts may be cut into chunks."""

    def _try_schedule_encoder_inputs(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int, encoder_compute_budget: int, **others: Any
    ) -> Scheduled:
        """Asked about requests with images only. Answers no tokens where the rest of the prompt does not fit.

        A request that was preempted computes its prompt alone first, as it did before, and then what it had generated.
        """
        later: Scheduled = ([], 0, encoder_compute_budget, [], [])
        rest = request.num_prompt_tokens - num_computed_tokens
        if rest > num_new_tokens:
            return later
        wanted = num_new_tokens if rest <= 0 else rest
        scheduled: Scheduled = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, wanted, encoder_compute_budget, **others
        )
        _, tokens, *_ = scheduled
        if tokens < wanted:  # no room in the encoder cache, or for an image more
            return later
        return scheduled


@functools.cache
def _whole_prompts(stock: type) -> type:
    return type(f"Foveate{stock.__name__}", (WholePrompts, stock), {})


def scheduler(vllm_config: Any, **others: Any) -> Any:
    """vLLM's own scheduler for this configuration, with prompts that have images kept whole."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    stock = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    return _whole_prompts(stock)(vllm_config=vllm_config, **others)
