"""What either of vLLM's runners must tell a model: that requests begin, and that rows of its images arrive."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm.config import VllmConfig

from foveate_vllm import host

__all__ = ["model_state", "pruning_state", "pruning_switched_on"]


@contextmanager
def pruning_switched_on(vllm_config: VllmConfig) -> Iterator[None]:
    """While a model is made, say that it drops vision tokens: Qwen3-VL sizes its table of positions by that.

    vLLM itself says so for videos alone, by a rate that also changes how videos are laid out; so the question is
    answered here, and the rate stays unset. Runner V1 asks again once the model is loaded, V2 asks `pruning_state`.
    """
    media: Any = vllm_config.model_config.multimodal_config
    # A partial of a builtin, as the config is sent to other processes.
    media.is_multimodal_pruning_enabled = partial(bool, 1)
    yield
    if vllm_config.use_v2_model_runner:
        del media.is_multimodal_pruning_enabled
    elif host.current_platform.is_cpu():
        _let_the_cpu_runner_ask()


# -- runner V2 ------------------------------------------------------------------------------------------------


def model_state(hybrid: bool) -> type:
    """The class of a model's state that tells the stages between layers which requests begin.

    Args:
        hybrid: Whether some layers are recurrent.
    """

    class State(host.MambaHybridModelState if hybrid else host.DefaultModelState):  # type: ignore[misc]
        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            if self.model.dropping is not None:
                self.model.dropping.lost.begin(req_index)

    return State


def pruning_state(hybrid: bool) -> type:
    """As `model_state`, for models with M-RoPE: it splits the places off images' rows, whatever the config says."""

    class PruningState(model_state(hybrid)):  # type: ignore[misc]
        def __init__(self, vllm_config: VllmConfig, model: Any, encoder_cache: Any, device: Any) -> None:
            super().__init__(vllm_config, model, encoder_cache, device)
            if encoder_cache is not None:
                self.mm_pruner = host.MultiModalPruner(model, self.rope_state, encoder_cache, self.inputs_embeds_size)

    return PruningState


# -- runner V1 ------------------------------------------------------------------------------------------------


def _let_the_cpu_runner_ask() -> None:
    """vLLM's runner for the CPU has its own way to load a model, which leaves the question out."""
    host.CPUModelRunner.is_multimodal_pruning_enabled = property(_drops_vision_tokens, _ignore)


def _drops_vision_tokens(runner: Any) -> bool:
    """What the runner for the GPU finds out when it has loaded a model."""
    model = getattr(runner, "model", None)
    config = runner.model_config.multimodal_config
    return (
        bool(host.supports_multimodal_pruning(model)) and config is not None and config.is_multimodal_pruning_enabled()
    )


def _ignore(runner: Any, value: bool) -> None:
    """The runner sets it to False before there is a model."""
