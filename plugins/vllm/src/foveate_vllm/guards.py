"""Every refusal of the plug-in: said when the server starts, or to the request that cannot be served."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import CacheStage, LayerStage, PatchStage, Shape, Stage
from foveate.core.signals import Attention, Cells, Hidden, OwnSignal, Products, Resource, Rotary, Text, ValueLikeness
from foveate.core.views import Arriving
from foveate.engine.program import Program
from foveate.errors import BudgetError, SettingError, UnsupportedError
from foveate_vllm import host

REDUCED = "Make its rows on transformers, which stock vLLM takes as they are: Reduced embeddings, docs/guides/vllm.md."


# -- the method -----------------------------------------------------------------------------------------------


def refuse_early(stages: Program) -> None:
    """A server's tower runs whole pictures, and a prompt is made before any picture is seen."""
    name = stages.method.name
    if any(isinstance(stage, PatchStage) for stage in stages.pixels):
        raise UnsupportedError(
            f"{name} drops patches before the vision tower, so that the picture decides how many tokens are left; "
            "vLLM's towers run whole pictures, and it makes room for their tokens before. Use transformers."
        )
    if stages.pixels:
        raise UnsupportedError(
            f"{name} makes pictures smaller, which vLLM's vision towers cannot take. Use averagepool, or let the "
            "client send smaller pictures."
        )
    if stages.tower is not None:
        raise UnsupportedError(
            f"{name} merges patches inside the vision tower, so that the picture decides how many are left; vLLM makes "
            f"room for them before. {REDUCED}"
        )
    for stage in stages.early:
        if stage.reads_text:
            raise UnsupportedError(
                f"{name} reads the question before the decoder, and vLLM encodes a picture for any question. {REDUCED}"
            )
        if stage.unit == "sample":
            raise UnsupportedError(
                f"{name} ranks the tokens of all images of a request together, and vLLM encodes them one by one. Set "
                "scope=image."
            )


def refuse_unknown_count(method: Method, count: int | None) -> int:
    """The count, where it is known; a prompt is as long as it is before the picture is seen."""
    if count is None:
        raise UnsupportedError(
            f"{method.name} lets the picture decide how many tokens stay, and vLLM must know it before it has seen the "
            f"picture. Set tokens or retention. {REDUCED}"
        )
    return count


def refuse_tower(model_type: str) -> None:
    """Towers whose attention foveate cannot read in vLLM."""
    if model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise UnsupportedError(f"foveate cannot drop tokens of {model_type} towers in vLLM. Use transformers.")


def refuse_reading_tower(stages: Program) -> None:
    """Stages that read the vision tower of a model whose tower the plug-in does not know."""
    seen = {type(signal) for stage in stages.early for signal in stage.reads} - {Hidden, Cells}
    if stages.encodes == "tower" or seen:
        raise UnsupportedError(
            f"{stages.method.name} reads the vision tower, which the plug-in shows of LLaVA and Qwen-VL alone. Take "
            f"a method that reads an image's rows, such as divprune. {REDUCED}"
        )


def refuse_mrope(architecture: str, mrope: bool) -> None:
    """A model whose positions have three axes, in the way of models whose rows are numbered anew."""
    if mrope:
        raise UnsupportedError(
            f"{architecture} has positions of three axes (M-RoPE), which the plug-in keeps for the Qwen models that "
            f"docs/guides/vllm.md names alone. {REDUCED}"
        )


def refuse_no_images(limits: Mapping[str, int | None]) -> None:
    """A model that takes other media alone."""
    if "image" not in limits:
        raise UnsupportedError(
            f"In vLLM this model takes {', '.join(limits) or 'no media'} and no images, so there is nothing to drop. "
            "Serve it without foveate."
        )


def without_images(config: Any) -> Any:
    """vLLM's settings for CUDA graphs of the tower, for other media alone: what is captured is not dropped from."""
    return replace(config, modalities=[name for name in config.modalities if name != "image"])


def refuse_tower_lora(lora: Any) -> None:
    """vLLM tells a tower's LoRA how many tokens there are by what is left in the prompt."""
    if getattr(lora, "enable_tower_connector_lora", False):
        raise UnsupportedError(
            "enable_tower_connector_lora counts an image's tokens in the prompt, from which foveate drops some. Use "
            "LoRA on the decoder alone."
        )


def refuse_unloaded_block(block: int, loaded: int) -> None:
    """vLLM loads the tower as far as the decoder needs it."""
    if block > loaded:
        raise UnsupportedError(
            f"This method reads block {block} of the vision tower, and foveate loads blocks 0 to {loaded} in vLLM. "
            "Name an earlier block."
        )


# -- the engine -----------------------------------------------------------------------------------------------


def refuse_engine_of_mrope(vllm_config: Any) -> None:
    """Ways to run a Qwen model in which rows would lose their places, or the tower would show nothing."""
    media, lora = vllm_config.model_config.multimodal_config, vllm_config.lora_config
    reasons = {
        "pipeline_parallel_size above 1: only the first stage learns the places of rows. Use tensor parallelism": (
            vllm_config.parallel_config.pipeline_parallel_size > 1
        ),
        "speculative decoding: its drafts are made without the places of rows. Leave speculative_config unset": (
            vllm_config.speculative_config is not None
        ),
        "video_pruning_rate: vLLM's own way with videos has another form of places. Leave it unset": (
            bool(media.video_pruning_rate)
        ),
        "mm_encoder_tp_mode='data': each process would see other images. Leave it at 'weights'": (
            media.mm_encoder_tp_mode == "data" and vllm_config.parallel_config.tensor_parallel_size > 1
        ),
        "LoRA on the vision tower: vLLM counts its tokens by what is left. Leave enable_tower_connector_lora unset": (
            lora is not None and lora.enable_tower_connector_lora
        ),
        "a compiled vision tower: it shows no attention. Leave compile_mm_encoder unset": (
            vllm_config.compilation_config.compile_mm_encoder
        ),
    }
    for reason, refused in reasons.items():
        if refused:
            raise UnsupportedError(f"foveate cannot drop tokens of this model with {reason}.")


# -- a request ------------------------------------------------------------------------------------------------


def refuse_unknown_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Keys of `mm_processor_kwargs` that look like foveate's and are not: transformers would ignore them.

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
    """A rate is a whole number of tokens or a share, not both.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    if tokens is not None and retention is not None:
        raise SettingError(f"Give foveate_tokens or foveate_retention, not both; got {tokens!r} and {retention!r}.")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise SettingError(f"foveate_tokens must be a whole number, 1 or more; got {tokens!r}.")
    if retention is not None and not (type(retention) in (int, float) and 0 < retention <= 1):
        raise SettingError(
            f"foveate_retention (of films foveate_video_retention) must be a share above 0 and at most 1; "
            f"got {retention!r}."
        )


def refuse_no_flag(untested: Any) -> None:
    """The setting's "untested" is true or false."""
    if not isinstance(untested, bool):
        raise SettingError(f'"untested" in hf_overrides["foveate"] is true or false; got {untested!r}.')


def refuse_rate_between_layers(stages: Program) -> None:
    """A request's own rate, where counts between layers are those of the server's method."""
    if stages.late:
        raise SettingError(
            f"{stages.method.name} drops tokens between decoder layers, at counts that were fixed when the server "
            "started: requests cannot have rates of their own. Leave foveate_tokens and foveate_retention out."
        )


def refuse_rate_without_image(values: Mapping[str, Any], media: Sequence[str], usual: Mapping[str, Any] | None) -> None:
    """A rate, or what looks like one, in a request without what it is of: vLLM would ignore it.

    Args:
        values: The request's `mm_processor_kwargs`, into which vLLM may have put the server's.
        media: Its kinds of media.
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
    """A rate of more tokens than the image has."""
    if tokens is not None and tokens > size:
        raise SettingError(f"foveate_tokens must be between 1 and {size} for this image; got {tokens}.")


def refuse_image_at_end(end: int, length: int) -> None:
    """Behind a cut image the text goes on from where the whole one would end; without text nothing says where."""
    if end == length:
        raise SettingError(
            "The prompt ends in an image. Put text, or the token that ends an image, behind it; the model's chat "
            "template does."
        )


def refuse_wrong_count(rows: int, count: int) -> None:
    """The prompt has as many places as the processor counted."""
    if rows != count:
        raise RuntimeError(
            f"{rows} rows of an image are left, but the prompt has {count} places for them. This is a mistake of "
            "foveate's; please report it with the method and the rate."
        )


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
    if follow.reading(late) is not None:
        raise UnsupportedError(
            "This method reads only some of the cached tokens while decoding (read, or dycoke with p), and vLLM's "
            "kernels read all. Leave read out, or set p=0."
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
        far = isinstance(signal, Attention) and (signal.rows == "raters" or signal.without_distance)
        if far or isinstance(signal, Text | OwnSignal | Resource | Rotary | Products | ValueLikeness):
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


def refuse_engine(config: Any, untested: bool = False) -> None:
    """Settings of the engine (vLLM's `VllmConfig`) under which dropping between layers would be wrong.

    Args:
        config: As vLLM's own checks will find it.
        untested: Whether the server's setting allows an attention backend that was not tried.
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
            "cannot divide the layers between processes (pipeline parallel): each cut must be known to all. "
            "Use --tensor-parallel-size instead of --pipeline-parallel-size.",
        ),
        (
            model.is_moe and (parallel.data_parallel_size > 1 or parallel.enable_expert_parallel),
            "cannot divide experts between processes: these agree on the rows of a step before it begins, and some of "
            "them leave on the way. Leave --enable-expert-parallel and --data-parallel-size out.",
        ),
        (
            config.speculative_config is not None,
            "cannot check tokens that were guessed ahead: rejected ones would move the places of the others. "
            "Leave --speculative-config out.",
        ),
        (
            config.lora_config is not None,
            "cannot serve LoRA adapters: vLLM assigns them to all rows of a step, and some of these leave on the way. "
            "Leave --enable-lora out, or take a method before the decoder, such as visionzip.",
        ),
        (
            config.kv_transfer_config is not None,
            "cannot hand KV caches to a connector: layers differ in length. Leave --kv-transfer-config out.",
        ),
        (
            cache.kv_sharing_fast_prefill,
            "cannot leave out rows of a prompt in layers that share a KV cache (fast prefill), since it leaves out "
            "others itself. Leave --kv-sharing-fast-prefill out.",
        ),
        (
            model.is_hybrid or model.is_attention_free,
            "cannot work in recurrent layers: what they remember of a row cannot leave. Take a method before the "
            "decoder, such as divprune.",
        ),
        (
            model.is_mm_prefix_lm,
            "cannot work in a model whose image tokens attend to those behind them: vLLM tells its kernels where "
            "images are in the whole prompt. Take a method before the decoder, such as divprune.",
        ),
        (
            graphs is not None and graphs.has_full_cudagraphs(),
            "cannot replay a whole step as one CUDA graph, as layers get lengths of their own. Leave cudagraph_mode "
            'out of --compilation-config, or say "PIECEWISE" there.',
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


TRIED = ("CPU_ATTN", "TRITON_ATTN")
"""Attention backends under which tests compare answers with those on transformers."""
WRONG = ("FLASHINFER",)
"""Backends that plan all layers of a step at once, for one length: wrong without a word."""


def refuse_backend(name: str, untested: bool = False) -> None:
    """An attention backend that was not tried, unless the server's setting says that this is known."""
    if name in TRIED or (untested and name not in WRONG):
        return
    if name in WRONG:
        raise UnsupportedError(
            f"Dropping vision tokens between layers would be wrong with the attention backend {name}, which plans all "
            "layers of a step for one length. Start the server with --attention-backend TRITON_ATTN."
        )
    raise UnsupportedError(
        f"Dropping vision tokens between layers was tested with the attention backends {' and '.join(TRIED)}, and this "
        f"engine would take {name}. Start the server with --attention-backend TRITON_ATTN; or run foveate-vllm check "
        'METHOD on this machine, and if it passes add "untested": true to the setting.'
    )


def refuse_layer(layer: Any, untested: bool) -> Any:
    """A decoder layer's attention, if stages can work around it."""
    attention = getattr(getattr(layer, "self_attn", None), "attn", None)
    if attention is None:
        raise UnsupportedError(
            f"Dropping vision tokens between layers knows layers whose attention is self_attn.attn, and a "
            f"{type(layer).__name__} has none. Take a method before the decoder, such as divprune."
        )
    takes = [*inspect.signature(layer.forward).parameters][:3]
    if takes != ["positions", "hidden_states", "residual"] or not hasattr(layer, "input_layernorm"):
        raise UnsupportedError(
            f"Dropping vision tokens between layers knows layers that take positions, hidden_states and residual, and "
            f"have input_layernorm; {type(layer).__name__} takes {', '.join(takes)}. Take a method before the decoder, "
            "such as divprune."
        )
    host.look_at(attention)
    refuse_backend(attention.attn_backend.get_name(), untested)
    refuse_window(attention.sliding_window)
    if attention.kv_sharing_target_layer_name is not None:
        raise UnsupportedError(
            "Dropping vision tokens between layers cannot work where a layer attends to the keys of an earlier one, "
            "which has kept other rows. Take a method before the decoder, such as divprune."
        )
    return attention


def refuse_window(size: int | None) -> None:
    """A layer's sliding window, in tokens: it counts those that are left, and blocks behind it are freed by all."""
    if size is not None:
        raise UnsupportedError(
            "Dropping vision tokens between layers cannot work in a layer with a sliding window: behind a cut its "
            f"{size} tokens would reach farther back than in the whole prompt. Start the server with "
            "--disable-sliding-window, which lets no request be longer than the window, or take a method before the "
            "decoder, such as visionzip."
        )


def refuse_film_between_layers(medium: str) -> None:
    """A request with a film, where stages between layers cut images.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    if medium != "image":
        raise SettingError(
            f"This server drops tokens of images between decoder layers, and cannot of {medium}. Send "
            "frames as images, or ask a server whose method stands before the decoder, where films stay whole."
        )


def refuse_uncountable(stages: Sequence[Stage], depth: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """A prompt with images of these sizes, of which it cannot be said how many tokens each layer keeps.

    Returns:
        How many, where it can.

    Raises:
        BudgetError: If a stage cannot meet its budget for them.
    """
    plan = follow.layer_plan(stages, depth, sizes)
    if plan is None:
        raise SettingError(
            f"This method cannot cut a prompt with {len(sizes)} images: a stage ranks each image separately behind one "
            "that ranks all of them together. Give both the same scope, or one image."
        )
    return plan


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
