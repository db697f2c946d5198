"""All of vLLM's private names that the plug-in uses, in one place. They are checked when a server starts.

    from foveate_vllm.host import Scheduler        the class, or an error that names what is missing

Other modules import from vLLM only what authors of models do: configs, models, processors, multimodal inputs.
"""

import os
import shlex
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

from foveate.errors import UnsupportedError
from foveate.hosts import Checks

__all__ = ["NAMES", "found", "gone", "look_at", "note_passed", "probe", "refuse_unchecked"]

KNOWN = "0.32"
"""The minor version that the tests run. Of others plugins/vllm/tests/newest.py tries the Python files alone."""
CHECKS = Checks("vllm", (KNOWN,))
CHECKING = "FOVEATE_VLLM_CHECKING"
"""Environment variable of the processes of `foveate-vllm check`."""
NAMES: dict[str, tuple[str, ...]] = {
    "vllm.config": (
        "get_layers_from_vllm_config",
        "CacheConfig.enable_prefix_caching", "CacheConfig.kv_sharing_fast_prefill", "CacheConfig.sliding_window",
        "CompilationConfig.compile_mm_encoder", "CompilationConfig.cudagraph_mode",
        "ModelConfig.is_attention_free", "ModelConfig.is_hybrid", "ModelConfig.is_mm_prefix_lm", "ModelConfig.is_moe",
        "MultiModalConfig.is_multimodal_pruning_enabled", "MultiModalConfig.mm_encoder_tp_mode",
        "MultiModalConfig.mm_processor_kwargs", "MultiModalConfig.video_pruning_rate",
        "ParallelConfig.data_parallel_size", "ParallelConfig.decode_context_parallel_size", "ParallelConfig.enable_dbo",
        "ParallelConfig.enable_expert_parallel", "ParallelConfig.pipeline_parallel_size",
        "ParallelConfig.prefill_context_parallel_size", "ParallelConfig.use_ubatching",
        "SchedulerConfig.async_scheduling", "SchedulerConfig.long_prefill_token_threshold",
        "SchedulerConfig.max_num_encoder_input_tokens", "SchedulerConfig.scheduler_cls",
        "VllmConfig.attention_config", "VllmConfig.kv_transfer_config", "VllmConfig.lora_config",
        "VllmConfig.speculative_config", "VllmConfig.use_v2_model_runner",
    ),
    "vllm.config.compilation": ("CUDAGraphMode.PIECEWISE", "CUDAGraphMode.has_full_cudagraphs"),
    "vllm.forward_context": (
        "ForwardContext.attn_metadata", "ForwardContext.skip_compiled", "ForwardContext.slot_mapping",
        "get_forward_context",
    ),
    "vllm.model_executor.layers.attention": ("Attention.forward", "Attention.get_attn_backend"),
    "vllm.model_executor.models.config": ("MODELS_CONFIG_MAP",),
    "vllm.model_executor.models.registry": ("ModelRegistry.models", "_MULTIMODAL_MODELS"),
    "vllm.model_executor.models.interfaces": (
        "SupportsMultiModal._mark_tower_model", "SupportsMultiModalPruning.recompute_mrope_positions",
        "supports_mrope", "supports_multimodal_pruning",
    ),
    "vllm.multimodal.processing": (
        "BaseMultiModalProcessor._apply_hf_processor_main", "BaseMultiModalProcessor._get_mm_fields_config",
        "BaseMultiModalProcessor._get_prompt_updates", "BaseMultiModalProcessor._maybe_apply_prompt_updates",
        "BaseMultiModalProcessor.apply", "BaseMultiModalProcessor.get_dummy_mm_inputs",
        "PromptUpdate._resolve_content", "PromptUpdateDetails.full", "PromptUpdateDetails.is_embed",
    ),
    "vllm.platforms": ("current_platform.is_cpu",),
    "vllm.renderers.base": ("BaseRenderer._process_tokens", "BaseRenderer._process_tokens_async"),
    "vllm.utils.gpu_sync_debug": ("gpu_sync_allowed",),
    "vllm.v1.attention.backend": (
        "AttentionMetadataBuilder.build",
        *(
            f"CommonAttentionMetadata.{field}"
            for field in (
                "block_table_tensor", "max_query_len", "max_seq_len", "num_actual_tokens", "positions",
                "query_start_loc", "query_start_loc_cpu", "req_idx", "seq_lens", "seq_lens_cpu_upper_bound",
                "slot_mapping", "_num_computed_tokens_cache", "_token_to_req_indices_cache",
            )
        ),
    ),
    "vllm.v1.attention.backends.utils": ("subclass_attention_backend",),
    "vllm.v1.core.sched.async_scheduler": ("AsyncScheduler",),
    "vllm.v1.core.sched.scheduler": (
        "Scheduler.add_request", "Scheduler.schedule", "Scheduler._handle_blocked_waiting_request",
        "Scheduler._try_schedule_encoder_inputs",
    ),
    "vllm.v1.request": ("Request.get_skip_reading_prefix_cache",),
    "vllm.v1.worker.gpu.model_states.default": ("DefaultModelState.add_request",),
    "vllm.v1.worker.gpu.model_states.mamba_hybrid": ("MambaHybridModelState.add_request",),
    "vllm.v1.worker.gpu.model_states.mm_pruning": ("MultiModalPruner.recompute",),
}  # fmt: skip
"""Modules, and names in them."""
ATTENTION = (
    "attn_backend", "head_size", "impl", "kv_cache", "kv_sharing_target_layer_name", "layer_name", "sliding_window"
)  # fmt: skip
"""Attributes that a layer's attention must have once it is built."""
ON_A_CPU = {"vllm.v1.worker.cpu_model_runner": ("CPUModelRunner.load_model",)}
"""Names of the CPU build, which other builds may be unable to import."""


def found() -> Iterator[tuple[str, Any]]:
    """Yield each name, as "module:name", with vLLM's object; test it with `gone`."""
    cpu = ON_A_CPU if not gone(current := _at("vllm.platforms", "current_platform")) and current.is_cpu() else {}
    for module, names in (NAMES | cpu).items():
        for name in names:
            yield f"{module}:{name}", _at(module, name)


class _Gone:
    """Stands for a name that vLLM does not have."""


def gone(thing: Any) -> bool:
    """Return whether vLLM lacks a name, given what `found` yielded for it."""
    return isinstance(thing, _Gone)


def probe() -> None:
    """Check all names when a server starts.

    Raises:
        UnsupportedError: If vLLM has moved or removed any; the message lists them.
    """
    missing = [name for name, thing in found() if gone(thing)]
    if missing:
        raise _refusal(missing)


def look_at(attention: Any) -> None:
    """Check the attributes of a layer's attention once it is built.

    Raises:
        UnsupportedError: If it lacks one.
    """
    missing = [f"{type(attention).__name__}.{name}" for name in ATTENTION if not hasattr(attention, name)]
    if missing:
        raise _refusal(missing)


def refuse_unchecked(model: str, method: str) -> None:
    """Refuse to drop in a version of vLLM that is not tested, unless the check passed there on this machine.

    Raises:
        UnsupportedError: If it has not passed for this model and method.
    """
    if CHECKING not in os.environ:
        command = f"foveate-vllm check {shlex.quote(model)} --method {shlex.quote(method)}"
        CHECKS.refuse(_conditions(model, method), command)


def note_passed(model: str, method: str) -> None:
    """Remember that the check passed for a model and a method, for `refuse_unchecked`."""
    CHECKS.note(_conditions(model, method))


def _conditions(model: str, method: str) -> list[str]:
    return [version_of_vllm(), *map(version, ("torch", "foveate", "foveate-vllm")), model, method]


def _refusal(missing: list[str]) -> UnsupportedError:
    return UnsupportedError(
        f"vLLM {version_of_vllm()} has no {', '.join(missing)}. foveate-vllm {version('foveate-vllm')} knows vLLM "
        f"{KNOWN}: install it, or a newer foveate-vllm."
    )


def version_of_vllm() -> str:
    """Return vLLM's version string."""
    return str(getattr(import_module("vllm"), "__version__", "of an unknown version"))


def _at(module: str, name: str) -> Any:
    """Look up a dotted name in a module. Dataclass fields count too, though they are not attributes of the class."""
    try:
        thing: Any = import_module(module)
    except ImportError:
        return _Gone()
    for part in name.split("."):
        fields = getattr(thing, "__dataclass_fields__", {})
        thing = fields[part] if part in fields else getattr(thing, part, _Gone())
    return thing


def __getattr__(name: str) -> Any:
    """Import a class or function of `NAMES` on first access."""
    for module, names in (NAMES | ON_A_CPU).items():
        if name in {known.split(".")[0] for known in names}:
            thing = _at(module, name)
            if gone(thing):
                raise _refusal([f"{module}:{name}"])
            return thing
    raise AttributeError(name)
