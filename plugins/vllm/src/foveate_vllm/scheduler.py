"""Between the layers: required engine settings, and a scheduler that computes prompts with images in one step."""

import functools
from importlib import import_module
from typing import Any

import foveate_vllm as plugin
from foveate_vllm import guards, host
from foveate_vllm.processing import refuse_rates_of_texts
from foveate_vllm.setting import Rate

__all__ = ["configure", "scheduler"]


def configure(config: Any) -> None:
    """Refuse what cannot work, and set what stages between layers need, if the method has any.

    Args:
        config: vLLM's `VllmConfig`.
    """
    architecture = config.model_config.architecture
    host.probe()
    module = import_module(f"{plugin.__name__}.{plugin.module_of(architecture)}")
    model = config.model_config.hf_config
    setting = getattr(module, architecture).setting_of(model)
    host.refuse_unchecked(config.model_config.model, setting.spelled)
    Rate.of(config.model_config.multimodal_config.mm_processor_kwargs or {})  # refuse a wrong rate
    refuse_rates_of_texts()
    stages = setting.stages(Rate())
    if not stages.late:
        return
    guards.refuse_stages(stages.late, stages.shape)
    guards.refuse_engine(config, setting.untested)
    if not config.model_config.enforce_eager and config.compilation_config.cudagraph_mode is None:
        config.compilation_config.cudagraph_mode = host.CUDAGraphMode.PIECEWISE  # vLLM's default captures whole steps
    config.scheduler_config.scheduler_cls = f"{__name__}.scheduler"
    setattr(model, guards.STEP, config.scheduler_config.max_num_batched_tokens)


Scheduled = tuple[list[int], int, int, list[int], list[int]]
"""Images to encode, tokens to compute, the encoder budget left, images loaded from elsewhere, and repeated images."""


class WholePrompts:
    """Base class placed before a scheduler of vLLM. Prompts with images run in one step and read no prefix cache.

    Behind a cut, fewer tokens' keys fill the blocks of a prompt with images, so such a prompt cannot be read from the
    cache. Keys before its images are as usual, and other prompts may read them. Prompts without images are unaffected.

    If a prompt with images finds no room in a step, no prompt behind it begins in that step. Otherwise long texts,
    which are cut into chunks, could take the room of every step. vLLM 0.32 does so itself, and 0.33 does not.
    """

    _waits = False
    """Whether a prompt with images found no room in this step."""

    def schedule(self, *args: Any, **named: Any) -> Any:
        """Schedule a step."""
        self._waits = False
        return super().schedule(*args, **named)  # type: ignore[misc]

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Return whether a waiting request may begin in this step."""
        return not self._waits and bool(super()._handle_blocked_waiting_request(request))  # type: ignore[misc]

    def add_request(self, request: Any) -> None:
        """Add a new request."""
        if request.mm_features:
            request.skip_reading_prefix_cache = True
        super().add_request(request)  # type: ignore[misc]

    def _try_schedule_encoder_inputs(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int, encoder_compute_budget: int, **others: Any
    ) -> Scheduled:
        """Schedule a request with images. Schedules no tokens if the rest of its prompt does not fit into the step.

        A request that was preempted computes its prompt alone first, as before, and then the tokens it had generated.
        """
        later: Scheduled = ([], 0, encoder_compute_budget, [], [])
        rest = request.num_prompt_tokens - num_computed_tokens
        if rest > num_new_tokens:
            self._waits = True
            return later
        wanted = num_new_tokens if rest <= 0 else rest
        scheduled: Scheduled = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, wanted, encoder_compute_budget, **others
        )
        _, tokens, *_ = scheduled
        if tokens < wanted:  # no room in the encoder cache, or for one more image
            self._waits = True
            return later
        return scheduled


@functools.cache
def _whole_prompts(stock: type) -> type:
    return type(f"Foveate{stock.__name__}", (WholePrompts, stock), {})


def scheduler(vllm_config: Any, **others: Any) -> Any:
    """Build vLLM's own scheduler for this configuration, with prompts that have images kept whole."""
    stock = host.AsyncScheduler if vllm_config.scheduler_config.async_scheduling else host.Scheduler
    return _whole_prompts(stock)(vllm_config=vllm_config, **others)
