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
    """Declare, while a model is built, that it drops vision tokens. Qwen3-VL sizes its position table by that.

    vLLM itself declares it only for videos, by a rate that also changes how videos are laid out. So the method is
    replaced here, and the rate stays unset. Runner V1 calls it again once the model is loaded; V2 uses `pruning_state`.
    """
    media: Any = vllm_config.model_config.multimodal_config
    # A partial of a builtin, because the config is pickled for other processes.
    media.is_multimodal_pruning_enabled = partial(bool, 1)
    yield
    if vllm_config.use_v2_model_runner:
        del media.is_multimodal_pruning_enabled
    elif host.current_platform.is_cpu():
        _let_the_cpu_runner_ask()


# -- runner V2 ------------------------------------------------------------------------------------------------


def model_state(hybrid: bool) -> type:
    """Return the model state class that tells the stages between layers which requests begin.

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
    """Return `model_state` for models with M-RoPE. It always splits the places off images' rows."""

    class PruningState(model_state(hybrid)):  # type: ignore[misc]
        def __init__(self, vllm_config: VllmConfig, model: Any, encoder_cache: Any, device: Any) -> None:
            super().__init__(vllm_config, model, encoder_cache, device)
            if encoder_cache is not None:
                self.mm_pruner = host.MultiModalPruner(model, self.rope_state, encoder_cache, self.inputs_embeds_size)

    return PruningState


# -- runner V1 ------------------------------------------------------------------------------------------------


def _let_the_cpu_runner_ask() -> None:
    """Make vLLM's CPU runner ask too. It loads models in its own way, without asking."""
    host.CPUModelRunner.is_multimodal_pruning_enabled = property(_drops_vision_tokens, _ignore)


def _drops_vision_tokens(runner: Any) -> bool:
    """Return what the GPU runner finds after it has loaded a model."""
    model = getattr(runner, "model", None)
    config = runner.model_config.multimodal_config
    return (
        bool(host.supports_multimodal_pruning(model)) and config is not None and config.is_multimodal_pruning_enabled()
    )


def _ignore(runner: Any, value: bool) -> None:
    """Ignore that the runner sets it to False before there is a model."""
