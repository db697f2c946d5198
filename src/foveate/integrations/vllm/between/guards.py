"""Between the layers: every refusal, with its reason and what to do instead."""

from collections.abc import Sequence
from typing import Any

from foveate.contract import follow
from foveate.contract.stages import CacheStage, LayerStage, Shape, Stage
from foveate.core.signals import Attention, Cells, Hidden
from foveate.core.views import Arriving
from foveate.errors import BudgetError, SettingError, UnsupportedError

__all__ = [
    "STEP",
    "refuse_backend",
    "refuse_counting_what_entered",
    "refuse_engine",
    "refuse_long_prompt",
    "refuse_merging",
    "refuse_stages",
    "refuse_uncountable",
]

STEP = "foveate_step"
"""Where the model's `hf_config` says how many tokens a step of the engine computes at most."""
PROBE = 576  # vision tokens of an image, to see whether counts are known


def refuse_stages(late: Sequence[Stage], shape: Shape) -> None:
    """Stages behind decoder layer 0 that cannot work inside vLLM.

    Args:
        late: The stages, in order.
        shape: Of the model.
    """
    if any(isinstance(stage, CacheStage) for stage in late):
        raise UnsupportedError(
            "This method cuts KV caches after the prefill (FinalKV, or kv=true), when vLLM has filled its blocks. "
            "Leave finalkv out, or set kv=false."
        )
    for stage in follow.layer_stages(late):
        reason = _reason_against(stage, shape)
        if reason:
            raise UnsupportedError(f"Inside vLLM no stage before decoder layer {stage.layer} {reason}")
    if follow.layer_plan(late, shape.depth, [PROBE]) is None:
        raise UnsupportedError(
            "This method decides from the picture or the question how many tokens stay before a decoder layer, and "
            "vLLM must know it beforehand. Give a method with a fixed number, such as v2drop:tokens=192."
        )


def _reason_against(stage: LayerStage, shape: Shape) -> str:
    """The end of a sentence that says why a stage cannot work; empty if it can."""
    if shape.renumbers and stage.positions == "reindex":
        return "may number rows anew: keys of other layers stand at the old numbers. Set positions=keep."
    if stage.host:
        return "may read values in Python. Take a method that works on the device."
    if stage.unit == "frame":
        return "may rank by frame. Set scope=image or scope=sample."
    if (stage.choose or stage.pick) and Hidden(back=0) in stage.reads:
        return "may merge tokens. Take a method that only drops, such as v2drop, fastv or pyramiddrop:positions=keep."
    if Cells() in stage.reads:
        return "can read where tokens are in the picture. Take another method."
    for signal in stage.reads:
        if isinstance(signal, Attention) and (signal.rows == "raters" or signal.without_distance):
            return f"can read {signal!r}. Take another method."
    return ""


def refuse_counting_what_entered(late: Sequence[Stage]) -> None:
    """Stages that count from an image's size before the decoder, where only the rows that enter it are known."""
    for stage in follow.layer_stages(late):
        if _left(stage, PROBE) != _left(stage, 2 * PROBE):
            raise UnsupportedError(
                f"The stage before decoder layer {stage.layer} has a budget (tokens or retention) that counts from all "
                "of an image's tokens, and the method drops some before the decoder, which this architecture does not "
                "tell inside vLLM. Give that member shares instead (keep=, image_token_ratio_list=)."
            )


def _left(stage: Stage, entered: int) -> int | None:
    """Tokens that a stage leaves of half of those that entered the decoder."""
    try:
        return stage.left(Arriving(PROBE // 2, entered, PROBE))
    except BudgetError:
        return None


def refuse_engine(config: Any) -> None:
    """Settings of the engine (vLLM's `VllmConfig`) under which dropping between layers would be wrong."""
    device, backend = config.device_config.device_type, config.attention_config.backend
    if backend is not None:
        refuse_backend(backend.name)
    elif device != "cpu":
        refuse_backend(f"one for {device}")
    parallel, scheduling = config.parallel_config, config.scheduler_config
    reasons = [
        (
            config.cache_config.enable_prefix_caching,
            "keeps no prefix cache: behind a cut the keys of a prompt depend on what else was in it. "
            "Start the server with --no-enable-prefix-caching.",
        ),
        (
            parallel.pipeline_parallel_size > 1,
            "cannot divide the layers between processes (pipeline parallel): each cut must be known to all. "
            "Use --tensor-parallel-size instead of --pipeline-parallel-size.",
        ),
        (
            config.speculative_config is not None,
            "cannot check tokens that were guessed ahead: rejected ones would move the places of the others. "
            "Leave --speculative-config out.",
        ),
        (
            config.kv_transfer_config is not None,
            "cannot hand KV caches to a connector: layers differ in length. Leave --kv-transfer-config out.",
        ),
        (
            not config.model_config.enforce_eager,
            "runs the model eagerly, since rows leave between layers. Start the server with --enforce-eager.",
        ),
        (
            parallel.enable_dbo or parallel.use_ubatching,
            "cannot split a step into micro-batches. Leave --enable-dbo out.",
        ),
        (
            parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1,
            "cannot divide a sequence between processes (context parallel). Use --tensor-parallel-size.",
        ),
        (
            scheduling.long_prefill_token_threshold > 0,
            "computes a prompt with images in one step. Leave --long-prefill-token-threshold out.",
        ),
        (
            scheduling.scheduler_cls is not None,
            "brings a scheduler of its own. Leave --scheduler-cls out.",
        ),
    ]
    for refused, reason in reasons:
        if refused:
            raise UnsupportedError(f"Dropping vision tokens between layers {reason}")


def refuse_backend(name: str) -> None:
    """An attention backend that was not tried. FLASHINFER, say, plans all layers of a step at once, for one length."""
    if name != "CPU_ATTN":
        raise UnsupportedError(
            "Dropping vision tokens between layers works with the attention backend CPU_ATTN alone, which is vLLM's on "
            f"a CPU; this engine would take {name}. Serve on a CPU and leave --attention-backend out, or take a method "
            "before the decoder, such as visionzip."
        )


def refuse_uncountable(stages: Sequence[Stage], depth: int, sizes: Sequence[int]) -> None:
    """A prompt with images of these sizes, of which it cannot be said how many tokens each layer keeps.

    Raises:
        BudgetError: If a stage cannot meet its budget for them.
    """
    if follow.layer_plan(stages, depth, sizes) is None:
        raise SettingError(
            f"This method cannot cut a prompt with {len(sizes)} images: a stage ranks each image separately behind one "
            "that ranks all of them together. Give both the same scope, or one image."
        )


def refuse_long_prompt(tokens: int, most: int) -> None:
    """A prompt with images that no step of the engine is large enough for."""
    if tokens > most:
        raise SettingError(
            f"This prompt with images has {tokens} tokens, and a step of the server computes at most {most}. A prompt "
            f"with images is not cut into chunks where tokens are dropped between layers. Give fewer images or less "
            f"text, or start the server with --max-num-batched-tokens {tokens} or more."
        )


def refuse_merging(layer: int) -> None:
    """A stage has merged tokens, against what `refuse_stages` could tell."""
    raise UnsupportedError(
        f"A stage before decoder layer {layer} has merged tokens. Inside vLLM stages between layers may only drop them."
    )
