"""Makes vLLM's runner ask a model for new M-RoPE positions when rows of its images arrive."""

from functools import partial
from typing import Any

from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.platforms import current_platform

__all__ = ["switch_on"]


def switch_on(multimodal_config: Any) -> None:
    """Tell the runners of this engine that its model drops vision tokens.

    vLLM itself says so for videos alone, by a rate that also changes how videos are laid out; so the question is
    answered here, and the rate stays unset. Call it while the model is made: the runner asks once it is loaded.
    """
    # A partial of a builtin, as the config is sent to other processes.
    multimodal_config.is_multimodal_pruning_enabled = partial(bool, 1)
    if current_platform.is_cpu():
        _let_the_cpu_runner_ask()


def _let_the_cpu_runner_ask() -> None:
    """vLLM's runner for the CPU has its own way to load a model, which leaves the question out."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    CPUModelRunner.is_multimodal_pruning_enabled = property(_drops_vision_tokens, _ignore)


def _drops_vision_tokens(runner: Any) -> bool:
    """What the runner for the GPU finds out when it has loaded a model."""
    model = getattr(runner, "model", None)
    config = runner.model_config.multimodal_config
    return supports_multimodal_pruning(model) and config is not None and config.is_multimodal_pruning_enabled()


def _ignore(runner: Any, value: bool) -> None:
    """The runner sets it to False before there is a model."""
