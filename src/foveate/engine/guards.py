"""Refusals of the engine that are long, or that several places or a layer's hot path call; short ones stand in place.

They say what cannot run while tokens are dropped, before anything is computed wrongly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from foveate._transformers import (
    CACHE_NAMES,
    DECODER,
    LAYER,
    Cache,
    cache_of,
    lacks,
    probe,
    recomputes_from_outside,
    unknown,
)
from foveate.contract.method import Method
from foveate.contract.stages import LayerStage, Stage
from foveate.core.signals import Resource, Rotary
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.families.support import refusal

CANDIDATES = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")

# -- attach ---------------------------------------------------------------------------------------------------


def refuse_unknown_host(family: Family) -> None:
    """What is used of transformers, and of the model's own modules, must be there, under the names that are known."""
    for what in probe():
        raise unknown(what)
    core, text, layers = family.core, family.text, family.layers
    if not family.gathers and not hasattr(core, "get_image_features"):
        raise unknown(f"has a {type(core).__name__} without get_image_features")
    called = {type(layer): layer for layer in layers}
    layer_takes: tuple[str | tuple[str, ...], ...] = LAYER
    decoder_takes: tuple[str | tuple[str, ...], ...] = DECODER
    if family.gathers:
        layer_takes, decoder_takes = ("attention_mask",), ()
        called = {type(layer): layer for index, layer in enumerate(layers) if index not in family.recurrent}
    for lacking in (lacks(text, decoder_takes), *(lacks(layer, layer_takes) for layer in called.values())):
        if lacking is not None:
            raise unknown(lacking)
    if len(set(map(id, layers))) < len(layers):
        raise UnsupportedError(
            f"Some of the {len(layers)} layers of {type(text).__name__} are the same module, so it cannot be told "
            "which of them runs. Use copies: model.load_state_dict of a model whose layers are its own."
        )


def refuse_stages(method: Method, stages: Sequence[Stage], family: Family, resources: Mapping[str, Any]) -> None:
    """A stage may read what this model or this engine has not, or was not handed in, or stand where nothing runs."""
    reason = refusal(stages, family.lacks, type(family))
    if reason is not None:
        raise UnsupportedError(f"{method.name} {reason}")
    for stage in stages:
        if isinstance(stage, LayerStage) and Rotary() in stage.reads and family.frequencies(stage.layer) is None:
            raise UnsupportedError(
                f"{method.name} reads {Rotary()!r} before layer {stage.layer}, and foveate finds no RoPE in the layers "
                f"of {type(family.text).__name__} from there on. Use a method that does not read it."
            )
    read = {signal.name for stage in stages for signal in stage.reads if isinstance(signal, Resource)}
    for name in sorted(read - set(resources)):
        raise UnsupportedError(
            f"{method.name} reads the resource {name!r}, and none was handed in. Hand it in: "
            f"foveate.drop(model, method, resources={{{name!r}: …}})."
        )
    for name in sorted(set(resources) - read):
        raise SettingError(f"{method.name} reads no resource {name!r} here. Leave it out of resources.")


def refuse_cuts_behind_lenders(family: Family, cuts: Sequence[int], reads_less: bool) -> None:
    """Layers that borrow keys and values may get the last row alone, so nothing may be dropped there."""
    if not family.lenders:
        return
    first = min(family.lenders)
    late = [layer for layer in cuts if layer >= first]
    if late or reads_less:
        what = "reads less while decoding"
        if not reads_less:
            what = f"drops before layer {late[0]}"
        raise UnsupportedError(
            f"This method {what}, but layers {first} to {max(family.lenders)} of this model attend to keys of earlier "
            f"layers, and may get the last row alone. Drop before layers 0 to {first - 1}, and read all tokens."
        )


def refuse_pages(*_: Any, **__: Any) -> NoReturn:
    """Stand in for the way into continuous batching, and end the call of a manager made before the context."""
    raise UnsupportedError(
        "Continuous batching takes token ids without pictures, and its paged cache cannot hold layers of different "
        "lengths. Inside a dropping context, use generate with a padded batch."
    )


def refuse_candidates(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Assisted decoding puts its candidates behind the prompt, into the very call that ranks by the text after it."""
    config = kwargs.get("generation_config")
    for name in CANDIDATES:
        if kwargs.get(name) is not None or getattr(config, name, None) is not None:
            raise UnsupportedError(
                f"{name} puts candidate tokens into the prefill, and this method would read them as part of the "
                f"prompt. Leave {name} unset, or use a method that reads no text (V2Drop, VisionDrop) and reads all "
                "tokens while decoding."
            )
    return original(*args, **kwargs)


# -- encode ---------------------------------------------------------------------------------------------------


def refuse_foreign_features(method: Method) -> NoReturn:
    """A method that reduces in the tower must have seen the tower run."""
    raise UnsupportedError(
        f"{type(method).__name__} reduces tokens in the vision tower, but these image features were computed "
        "outside the context or without their prompt, or chunked prefill has split them. Pass the pictures and the "
        "prompt to the model inside the context, and leave prefill_chunk_size unset."
    )


# -- begin ----------------------------------------------------------------------------------------------------


def refuse_lost_hooks(lost: str) -> NoReturn:
    """Without one of its hooks the context knows half of what the model does."""
    raise SessionError(
        f"{lost} is not foveate's any more: something inside the context has replaced or removed it, or the model "
        "calls its parts in another way. Exit the context before you change the model, and open a new one afterwards."
    )


def refuse_call(
    kwargs: dict[str, Any], live: Tensor | None, family: Family, columns: int, served: Sequence[type]
) -> None:
    """A call in which tokens will be dropped: its cache, packing, recomputing, outputs and length must allow it.

    Args:
        kwargs: The arguments of the decoder's forward.
        live: Which columns are no padding, (samples, columns); None: not known.
        family: Of the model.
        columns: Of this call and of earlier turns.
        served: The kinds of cache layers that may differ in length.
    """
    refuse_cache(cache_of(kwargs), served)
    # Told apart by position ids alone, samples in one row would be ranked together.
    if kwargs.get("cu_seq_lens_q") is not None or (live is None and _steps_back(kwargs.get("position_ids"))):
        raise UnsupportedError(
            "Several samples are packed into one row, so their vision tokens cannot be ranked separately. "
            "Pass the samples as a padded batch with an attention_mask."
        )
    # A layer that runs again in the backward pass must find the rows it ran on.
    if recomputes_from_outside(family.layers[0]):
        raise UnsupportedError(
            "Gradient checkpointing in this version of transformers runs layers a second time without the record of "
            "dropped tokens. Turn it off, or install a newer version: pip install -U transformers."
        )
    # transformers balances experts over all tokens of the prompt in all layers, also those that were dropped.
    if kwargs.get("output_router_logits"):
        raise UnsupportedError(
            "output_router_logits needs the tokens of the whole prompt, and some of them are dropped. "
            "Set it to False (also config.text_config.output_router_logits), or keep all tokens."
        )
    # Where layers count the rows that they get, and scale queries by that, rows left would be counted anew.
    if columns > family.longest:
        raise UnsupportedError(
            f"This prompt has {columns} columns, and from {int(family.longest) + 1} on layers of this model scale "
            "queries by how many rows come before them, which dropping changes. Use a shorter prompt."
        )


def refuse_first_layer(
    layer: nn.Module, kwargs: dict[str, Any], span: int, caches: bool, served: Sequence[type], gathers: bool = False
) -> None:
    """The first layer's call: its cache must be one that is known, and so must all that has a value for each column.

    Args:
        layer: It.
        kwargs: What the model hands it by name.
        span: Columns of the call.
        caches: Whether the model was told to cache.
        served: The kinds of cache layers that may differ in length.
        gathers: Whether what has a value for each column is gathered, whatever it is.
    """
    cache = cache_of(kwargs)
    refuse_cache(cache, served)
    for name in kwargs.keys() - LAYER_ARGUMENTS:
        value = kwargs[name]
        # What a layer does not name is handed on to the kernel, labels for example, and none reads columns in it.
        by_column = isinstance(value, Tensor) and span in value.shape[-2:] and lacks(layer, (name,)) is None
        if (by_column and not gathers) or isinstance(value, Cache):
            raise unknown(f"hands its layers {name}, which foveate does not know")
    if cache is None and caches:
        raise unknown("caches, and hands its layers no cache under a name that foveate knows")


LAYER_ARGUMENTS = {"hidden_states", "attention_mask", "position_embeddings", "position_ids", *CACHE_NAMES}


def refuse_cache(cache: Any, served: Sequence[type]) -> None:
    """A cache must hold layers of different lengths, of the kinds that are served: none that is static, quantised,
    offloaded or unknown."""
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise UnsupportedError(
            f"The cache is a {type(cache).__name__}; foveate needs a transformers DynamicCache. Pass one, or "
            "leave it out."
        )
    if cache.offloading:
        raise UnsupportedError(
            "Offloaded caches do not work while tokens are dropped. Use a DynamicCache without offloading."
        )
    if getattr(cache.update, "__func__", None) is not Cache.update:
        raise UnsupportedError(
            f"A {type(cache).__name__} stores rows in a way of its own (its update is not transformers' own), "
            "so its layers cannot differ in length. Use a DynamicCache."
        )
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    odd = sorted(kind.__name__ for kind in kinds - set(served))
    if odd:
        raise UnsupportedError(
            f"The cache has layers of type {', '.join(odd)}, which cannot differ in length. Use a DynamicCache: "
            "leave cache_implementation unset, or pass DynamicCache(config=model.config)."
        )


def _steps_back(ids: Any) -> bool:
    """Whether position ids, (samples, columns) or with four axes in front, do not go up by a step or more each."""
    if not isinstance(ids, Tensor) or ids.shape[-1] == 1:
        return False
    if ids.dim() != 2:
        if ids.shape[0] != 4:  # M-RoPE's three axes stand still or go back inside an image
            return False
        ids = ids[0]
    return bool((ids.diff(dim=-1) <= 0).any())


def refuse_layer_call(index: int, expected: int, args: Sequence[Any], kwargs: dict[str, Any]) -> NoReturn:
    """A layer that is called out of turn, or in another way than is known."""
    if index != expected:
        raise UnsupportedError(
            f"The model ran decoder layer {index} where layer {expected} was due, so it leaves a layer out or repeats "
            "one, and what is dropped before it would be wrong. foveate serves decoders that run each layer once, in "
            "order."
        )
    handed = [*(type(argument).__name__ for argument in args), *kwargs]
    raise unknown(f"calls its layers in a way that foveate does not know, with ({', '.join(handed)})")


def refuse_changed_rows(index: int) -> NoReturn:
    """A layer that gets other rows than the layer before it has handed on."""
    raise unknown(f"changes what layer {index - 1} answers before layer {index} gets it")


def refuse_other_cache(index: int | None) -> NoReturn:
    """Layers that store in one cache, and another that the model answers with or hands the next layer."""
    where = "The model answers with"
    if index is not None:
        where = f"Layer {index} gets"
    raise UnsupportedError(
        f"{where} another cache than the layers before it, so rows would be missing in it. Leave the cache to the "
        "model, or pass one DynamicCache."
    )


# -- each layer -----------------------------------------------------------------------------------------------


def refuse_recurrent_reading(layer: int, recurrent: frozenset[int], depth: int) -> None:
    """A recurrent layer pays no attention that could be read."""
    if layer in recurrent:
        readable = [str(other) for other in range(depth) if other not in recurrent]
        raise UnsupportedError(
            f"Layer {layer} has no attention to rank by: it carries a state from token to token. "
            f"Read attention at layers {', '.join(readable)}, or use a method that reads none (V2Drop)."
        )


# -- decode ---------------------------------------------------------------------------------------------------


def refuse_pruned_cache_outside() -> NoReturn:
    """Outside its context a pruned cache gets masks of another width."""
    raise SessionError(
        "This cache was pruned by foveate and is used outside its context: masks would be wrong. "
        "Continue inside `with foveate.drop(model, method)`, or start with an empty cache."
    )
