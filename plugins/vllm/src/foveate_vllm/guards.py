"""All refusals of the plug-in, raised when the server starts or as the answer to a request."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import CacheStage, LayerStage, Shape, Stage
from foveate.core.signals import Attention, Cells, Columns, Hidden, KeyNorms, Keys, Normed, Pivots
from foveate.core.views import Arriving
from foveate.errors import BudgetError, SettingError, UnsupportedError
from foveate.hosts import Host, Reducer
from foveate_vllm import host

REDUCED = "Compute its rows with transformers and send them to stock vLLM: Reduced embeddings, docs/guides/vllm.md."
TOWER = Host("vLLM", REDUCED, tower=True)
"""What models of LLaVA and Qwen-VL show."""
ROWS = Host("vLLM", REDUCED)
"""What other models show."""


# -- the method -----------------------------------------------------------------------------------------------


def refuse_unknown_count(method: Method, count: int | None) -> int:
    """Return the count if it is known before the image is seen: the prompt's length depends on it. Else refuse."""
    if count is None:
        raise UnsupportedError(
            f"{method.name} lets the picture decide how many tokens stay, but vLLM must know it before it sees the "
            f"picture. Set tokens or retention. {REDUCED}"
        )
    return count


def refuse_tower(model_type: str) -> None:
    """Refuse towers whose attention foveate cannot read in vLLM."""
    if model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise UnsupportedError(f"foveate cannot drop tokens of {model_type} towers in vLLM. Use transformers.")


def refuse_mrope(architecture: str, mrope: bool) -> None:
    """Refuse M-RoPE for models whose rows are renumbered."""
    if mrope:
        raise UnsupportedError(
            f"{architecture} has positions of three axes (M-RoPE), which the plug-in supports only for the Qwen models "
            f"named in docs/guides/vllm.md. {REDUCED}"
        )


def refuse_no_images(limits: Mapping[str, int | None]) -> None:
    """Refuse a model that takes no images."""
    if "image" not in limits:
        raise UnsupportedError(
            f"In vLLM this model takes {', '.join(limits) or 'no media'} and no images, so there is nothing to drop. "
            "Serve it without foveate."
        )


def without_images(config: Any) -> Any:
    """Remove images from vLLM's settings for CUDA graphs of the tower. Captured images could not be reduced."""
    return replace(config, modalities=[name for name in config.modalities if name != "image"])


def refuse_tower_lora(lora: Any) -> None:
    """Refuse LoRA on the tower: vLLM derives its token counts from the prompt, where dropped tokens are missing."""
    if getattr(lora, "enable_tower_connector_lora", False):
        raise UnsupportedError(
            "enable_tower_connector_lora counts an image's tokens in the prompt, where foveate's dropped tokens are "
            "missing. Use LoRA on the decoder alone."
        )


def refuse_unloaded_block(block: int, loaded: int) -> None:
    """Refuse to read a block that vLLM does not load. It loads the tower only as far as the decoder needs it."""
    if block > loaded:
        raise UnsupportedError(
            f"This method reads block {block} of the vision tower, but foveate loads only blocks 0 to {loaded} in "
            "vLLM. Name an earlier block."
        )


# -- the engine -----------------------------------------------------------------------------------------------


def refuse_engine_of_mrope(vllm_config: Any) -> None:
    """Refuse engine settings under which a Qwen model's rows would lose their places or its tower could not be read."""
    media, lora = vllm_config.model_config.multimodal_config, vllm_config.lora_config
    reasons = {
        "pipeline_parallel_size above 1: only the first stage learns the places of rows. Use tensor parallelism": (
            vllm_config.parallel_config.pipeline_parallel_size > 1
        ),
        "speculative decoding: its drafts are made without the places of rows. Leave speculative_config unset": (
            vllm_config.speculative_config is not None
        ),
        "video_pruning_rate: vLLM's own pruning of videos stores places in another form. Leave it unset": (
            bool(media.video_pruning_rate)
        ),
        "mm_encoder_tp_mode='data': each process would see other images. Leave it at 'weights'": (
            media.mm_encoder_tp_mode == "data" and vllm_config.parallel_config.tensor_parallel_size > 1
        ),
        "LoRA on the vision tower: vLLM counts its tokens after dropping. Leave enable_tower_connector_lora unset": (
            lora is not None and lora.enable_tower_connector_lora
        ),
        "a compiled vision tower: its attention cannot be read. Leave compile_mm_encoder unset": (
            vllm_config.compilation_config.compile_mm_encoder
        ),
    }
    for reason, refused in reasons.items():
        if refused:
            raise UnsupportedError(f"foveate cannot drop tokens of this model with {reason}.")


# -- a request ------------------------------------------------------------------------------------------------


def refuse_unknown_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse keys of `mm_processor_kwargs` that look like foveate's but are not. transformers would ignore them.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    wrong = [key for key in values if _is_ours(key) and key not in known]
    for scope, inner in values.items():
        if isinstance(inner, Mapping):  # such as images_kwargs
            wrong += [f"{key} in {scope}" for key in inner if _is_ours(key)]
    if wrong:
        raise SettingError(
            f"mm_processor_kwargs takes {' or '.join(known)}; the method is set when the server starts. "
            f"Got {', '.join(wrong)}."
        )


def _is_ours(key: str) -> bool:
    return key.lower().startswith("foveate")


def refuse_wrong_rate(tokens: Any, retention: Any) -> None:
    """Refuse a rate that is not a whole number of tokens or a share, or that is both.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    if tokens is not None and retention is not None:
        raise SettingError(f"Give foveate_tokens or foveate_retention, not both; got {tokens!r} and {retention!r}.")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise SettingError(f"foveate_tokens must be a whole number, 1 or more; got {tokens!r}.")
    if retention is not None and not (type(retention) in (int, float) and 0 < retention <= 1):
        raise SettingError(
            f"foveate_retention and foveate_video_retention must be a share above 0 and at most 1; got {retention!r}."
        )


def refuse_no_flag(untested: Any) -> None:
    """Refuse a value of the setting's "untested" that is not true or false."""
    if not isinstance(untested, bool):
        raise SettingError(f'"untested" in hf_overrides["foveate"] must be true or false; got {untested!r}.')


def refuse_rate_between_layers(stages: Reducer) -> None:
    """Refuse a request's own rate if the method drops between layers, where counts are fixed by the server."""
    if stages.late:
        raise SettingError(
            f"{stages.method.name} drops tokens between decoder layers, at counts that were fixed when the server "
            "started: requests cannot have rates of their own. Leave foveate_tokens and foveate_retention out."
        )


def refuse_rate_without_image(values: Mapping[str, Any], media: Sequence[str], usual: Mapping[str, Any] | None) -> None:
    """Refuse a rate, or a key like one, in a request without such media. vLLM would ignore it.

    Args:
        values: The request's `mm_processor_kwargs`, into which vLLM may have merged the server's.
        media: Kinds of media in the request.
        usual: The server's `mm_processor_kwargs`.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    for key, value in values.items():
        if not _is_ours(key) or (usual or {}).get(key) == value:
            continue
        medium = "video" if "video" in key else "image"
        if medium not in media:
            has = f"media of another kind ({', '.join(media)})" if media else f"no {medium}"
            raise SettingError(f"{key} says how much of each {medium} stays, and this request has {has}. Leave it out.")


def refuse_more_than_all(tokens: int | None, size: int) -> None:
    """Refuse a rate of more tokens than the image has."""
    if tokens is not None and tokens > size:
        raise SettingError(f"foveate_tokens must be between 1 and {size} for this image; got {tokens}.")


def refuse_image_at_end(end: int, length: int) -> None:
    """Refuse a prompt that ends in an image. Text after a reduced image gets the positions it has after a whole one."""
    if end == length:
        raise SettingError(
            "The prompt ends in an image. Put text, or the token that ends an image, behind it, as the model's chat "
            "template does."
        )


def refuse_wrong_count(rows: int, count: int) -> None:
    """Refuse another number of rows than the prompt has places, which the processor has counted."""
    if rows != count:
        raise RuntimeError(
            f"{rows} rows of an image are left, but the prompt has {count} places for them. This is a bug in foveate; "
            "please report it with the method and the rate."
        )


STEP = "foveate_step"
"""Attribute of the model's `hf_config` that holds the most tokens a step of the engine computes."""
PROBE = 576  # vision tokens of a trial image, to test whether counts are known


def refuse_stages(late: Sequence[Stage], shape: Shape) -> None:
    """Refuse stages after decoder layer 0 that cannot work inside vLLM.

    Args:
        late: The stages, in order.
        shape: The model's shape.
    """
    if any(isinstance(stage, CacheStage) for stage in late):
        raise UnsupportedError(
            "This method cuts KV caches after the prefill (FinalKV, or kv=true), but vLLM has filled its blocks by "
            "then. Leave finalkv out, or set kv=false."
        )
    if follow.reading(late) is not None:
        raise UnsupportedError(
            "This method reads only some of the cached tokens while decoding (read, or dycoke with p), but vLLM's "
            "kernels read all of them. Leave read out, or set p=0."
        )
    for stage in follow.layer_stages(late):
        reason = _reason_against(stage, shape)
        if reason:
            raise UnsupportedError(f"Inside vLLM no stage before decoder layer {stage.layer} {reason}")
    if follow.layer_plan(late, shape.depth, [PROBE]) is None:
        raise UnsupportedError(
            "This method decides from the picture or the question how many tokens stay before a decoder layer, but "
            "vLLM must know it beforehand. Use a method with a fixed number, such as v2drop:tokens=192."
        )


def _reason_against(stage: LayerStage, shape: Shape) -> str:
    """Return the end of a sentence that says why a stage cannot work; empty if it can."""
    if shape.renumbers and stage.positions == "reindex":
        return "may renumber rows: keys of other layers have the old positions. Set positions=keep."
    if stage.bias:
        return "may add to the logits of keys. Use a method without a bias."
    if stage.unit == "frame":
        return "may rank by frame. Set scope=image or scope=sample."
    if (stage.choose or stage.pick) and Hidden(back=0) in stage.reads:
        return "may merge tokens. Use a method that only drops, such as v2drop, fastv or pyramiddrop:positions=keep."
    if Cells() in stage.reads:
        return "can read where tokens are in the picture. Use another method."
    for signal in stage.reads:
        far = isinstance(signal, Attention) and (signal.rows == "raters" or signal.without_distance)
        if far or not isinstance(signal, Attention | Columns | Hidden | KeyNorms | Keys | Normed | Pivots):
            return f"can read {signal!r}. Use another method."
    return ""


def refuse_counting_what_entered(late: Sequence[Stage]) -> None:
    """Refuse stages whose budget counts from an image's original size if only its reduced size is known."""
    for stage in follow.layer_stages(late):
        if _left(stage, PROBE) != _left(stage, 2 * PROBE):
            raise UnsupportedError(
                f"The stage before decoder layer {stage.layer} has a budget (tokens or retention) that counts from all "
                "of an image's tokens, but the method drops some before the decoder, and with this architecture vLLM "
                "does not report how many. Give that member shares instead (keep=, image_token_ratio_list=)."
            )


def _left(stage: Stage, entered: int) -> int | None:
    """Return the tokens that a stage leaves if half of those that entered the decoder arrive."""
    try:
        return stage.left(Arriving(PROBE // 2, entered, PROBE))
    except BudgetError:
        return None


def refuse_engine(config: Any, untested: bool = False) -> None:
    """Refuse engine settings (vLLM's `VllmConfig`) under which dropping between layers would be wrong.

    Args:
        config: The settings, as vLLM's own checks will see them.
        untested: Whether the server's setting allows untested attention backends.
    """
    device, backend = config.device_config.device_type, config.attention_config.backend
    if backend is not None:
        refuse_backend(backend.name, untested)
    elif device != "cpu" and not untested:
        refuse_backend(f"vLLM's choice for {device}")
    cache, model, graphs = config.cache_config, config.model_config, config.compilation_config.cudagraph_mode
    refuse_window(cache.sliding_window)
    parallel, scheduling = config.parallel_config, config.scheduler_config
    reasons = [
        (
            parallel.pipeline_parallel_size > 1,
            "cannot divide the layers between processes (pipeline parallel): each cut must be known to all of them. "
            "Use --tensor-parallel-size instead of --pipeline-parallel-size.",
        ),
        (
            model.is_moe and (parallel.data_parallel_size > 1 or parallel.enable_expert_parallel),
            "cannot divide experts between processes: these agree on the rows of a step before it begins, but some "
            "rows are dropped during it. Leave --enable-expert-parallel and --data-parallel-size out.",
        ),
        (
            config.speculative_config is not None,
            "cannot verify tokens that were guessed ahead: rejected ones would move the places of the others. "
            "Leave --speculative-config out.",
        ),
        (
            config.lora_config is not None,
            "cannot serve LoRA adapters: vLLM assigns them to all rows of a step, but some rows are dropped during it. "
            "Leave --enable-lora out, or use a method before the decoder, such as visionzip.",
        ),
        (
            config.kv_transfer_config is not None,
            "cannot pass KV caches to a connector: layers differ in length. Leave --kv-transfer-config out.",
        ),
        (
            cache.kv_sharing_fast_prefill,
            "cannot skip rows of a prompt in layers that share a KV cache (fast prefill), because dropping skips "
            "others. Leave --kv-sharing-fast-prefill out.",
        ),
        (
            model.is_hybrid or model.is_attention_free,
            "cannot work in recurrent layers: a row cannot be removed from their state. Use a method before the "
            "decoder, such as divprune.",
        ),
        (
            model.is_mm_prefix_lm,
            "cannot work in a model whose image tokens attend to later ones: vLLM tells its kernels where images are "
            "in the whole prompt. Use a method before the decoder, such as divprune.",
        ),
        (
            graphs is not None and graphs.has_full_cudagraphs(),
            "cannot replay a whole step as one CUDA graph, because layers differ in length. Leave cudagraph_mode "
            'out of --compilation-config, or set it to "PIECEWISE" there.',
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
            "needs its own scheduler. Leave --scheduler-cls out.",
        ),
    ]
    for refused, reason in reasons:
        if refused:
            raise UnsupportedError(f"Dropping vision tokens between layers {reason}")


TRIED = ("CPU_ATTN", "TRITON_ATTN")
"""Attention backends under which tests compare answers with those of transformers."""
WRONG = ("FLASHINFER",)
"""Backends that plan all layers of a step at once for one length, and would silently be wrong."""


def refuse_backend(name: str, untested: bool = False) -> None:
    """Refuse an untested attention backend, unless the server's setting allows it."""
    if name in TRIED or (untested and name not in WRONG):
        return
    if name in WRONG:
        raise UnsupportedError(
            f"Dropping vision tokens between layers would be wrong with the attention backend {name}, which plans all "
            "layers of a step for one length. Start the server with --attention-backend TRITON_ATTN."
        )
    raise UnsupportedError(
        f"Dropping vision tokens between layers was tested with the attention backends {' and '.join(TRIED)}, but this "
        f"engine would take {name}. Start the server with --attention-backend TRITON_ATTN; or run foveate-vllm check "
        'METHOD on this machine, and if it passes add "untested": true to the setting.'
    )


def refuse_layer(layer: Any, untested: bool) -> Any:
    """Return a decoder layer's attention if stages can work around the layer. Else refuse."""
    attention = getattr(getattr(layer, "self_attn", None), "attn", None)
    if attention is None:
        raise UnsupportedError(
            "Dropping vision tokens between layers needs layers whose attention is self_attn.attn, but a "
            f"{type(layer).__name__} has none. Use a method before the decoder, such as divprune."
        )
    takes = [*inspect.signature(layer.forward).parameters][:3]
    if takes != ["positions", "hidden_states", "residual"] or not hasattr(layer, "input_layernorm"):
        raise UnsupportedError(
            "Dropping vision tokens between layers needs layers that take positions, hidden_states and residual, and "
            f"have input_layernorm; {type(layer).__name__} takes {', '.join(takes)}. Use a method before the decoder, "
            "such as divprune."
        )
    host.look_at(attention)
    refuse_backend(attention.attn_backend.get_name(), untested)
    refuse_window(attention.sliding_window)
    if attention.kv_sharing_target_layer_name is not None:
        raise UnsupportedError(
            "Dropping vision tokens between layers cannot work if a layer attends to the keys of an earlier one, "
            "which has kept other rows. Use a method before the decoder, such as divprune."
        )
    return attention


def refuse_window(size: int | None) -> None:
    """Refuse a sliding window of `size` tokens. It would count only tokens that are left, and free blocks for all."""
    if size is not None:
        raise UnsupportedError(
            "Dropping vision tokens between layers cannot work in a layer with a sliding window: behind a cut its "
            f"{size} tokens would reach farther back than in the whole prompt. Start the server with "
            "--disable-sliding-window, which limits requests to the window's length, or use a method before the "
            "decoder, such as visionzip."
        )


def refuse_film_between_layers(medium: str) -> None:
    """Refuse a request with a video if stages between layers cut images.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    if medium != "image":
        raise SettingError(
            f"This server drops tokens of images between decoder layers, but cannot drop tokens of {medium}. Send "
            "frames as images, or use a server whose method drops before the decoder, where videos stay whole."
        )


def refuse_uncountable(stages: Sequence[Stage], depth: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Refuse a prompt with images of these sizes if the tokens left in each layer cannot be computed.

    Returns:
        The tokens left in each layer.

    Raises:
        BudgetError: If a stage cannot meet its budget for them.
    """
    plan = follow.layer_plan(stages, depth, sizes)
    if plan is None:
        raise SettingError(
            f"This method cannot cut a prompt with {len(sizes)} images: a stage ranks each image separately behind one "
            "that ranks all of them together. Give both the same scope, or send one image."
        )
    return plan


def refuse_long_prompt(tokens: int, most: int) -> None:
    """Refuse a prompt with images that is too long for one step of the engine."""
    if tokens > most:
        raise SettingError(
            f"This prompt with images has {tokens} tokens, and a step of the server computes at most {most}. While "
            f"tokens are dropped between layers, a prompt with images is not cut into chunks. Send fewer images or "
            f"less text, or start the server with --max-num-batched-tokens {tokens} or more."
        )


def refuse_merging(layer: int) -> None:
    """Refuse a stage that merged tokens, which `refuse_stages` could not detect."""
    raise UnsupportedError(
        f"A stage before decoder layer {layer} has merged tokens. Inside vLLM stages between layers may only drop them."
    )
