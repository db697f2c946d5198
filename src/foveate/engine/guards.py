"""Refusals that are long, or that several places or a layer's hot path call. Short ones are raised in place.

Each refuses what cannot run while tokens are dropped, before anything is computed wrongly."""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn

import torch
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
    unsupported,
)
from foveate.contract.method import Method
from foveate.contract.stages import LayerStage, Stage
from foveate.core.signals import Resource, Rotary
from foveate.core.turns import Turn
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.families.support import refusal

CANDIDATES = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")

# -- attach ---------------------------------------------------------------------------------------------------


def refuse_unknown_host(family: Family) -> None:
    """Refuse a model, or a transformers version, that lacks the functions and modules that foveate hooks."""
    for what in probe():
        raise unsupported(what)
    core, text, layers = family.core, family.text, family.layers
    if not family.gathers and not hasattr(core, "get_image_features"):
        raise unsupported(f"has a {type(core).__name__} without get_image_features")
    called = {type(layer): layer for layer in layers}
    layer_takes: tuple[str | tuple[str, ...], ...] = LAYER
    decoder_takes: tuple[str | tuple[str, ...], ...] = DECODER
    if family.gathers:
        layer_takes, decoder_takes = ("attention_mask",), ()
        called = {type(layer): layer for index, layer in enumerate(layers) if index not in family.recurrent}
    for lacking in (lacks(text, decoder_takes), *(lacks(layer, layer_takes) for layer in called.values())):
        if lacking is not None:
            raise unsupported(lacking)
    if len(set(map(id, layers))) < len(layers):
        raise UnsupportedError(
            f"Some of the {len(layers)} layers of {type(text).__name__} are the same module, so foveate cannot tell "
            "which of them runs. Use copies: load the state_dict into a model whose layers are separate modules."
        )


def refuse_second(method: Method | None, door: str, is_elsewhere: bool, model: Any) -> NoReturn:
    """Refuse to open a model that is open already.

    Args:
        method: The method that is on it; None: it answers without one.
        door: How it was opened; see `foveate.engine.hold.Hold`.
        is_elsewhere: Whether another thread opened it.
        model: The model.
    """
    name = type(model).__name__
    if door == "ask" and is_elsewhere:
        raise SessionError(
            f"Another thread is asking this {name} (vlm.ask), and nothing may be put on it meanwhile. Use vlm.ask here "
            "too, which waits for its turn, or try again when that question is answered."
        )
    if door == "drop" and is_elsewhere:
        raise SessionError(
            f"{method} is already applied to this {name}: another thread has it open in foveate.drop, and contexts do "
            "not wait for one another. Call foveate.apply once for all threads, or vlm.ask with a method for each "
            "question, which waits for its turn; or try again when that context has ended."
        )
    first = "exit the first one" if door != "apply" else "call foveate.remove(model) first"
    raise SessionError(f"{method} is already applied to this {name}. Contexts cannot be nested: {first}.")


def refuse_removal(method: Method) -> NoReturn:
    """Refuse to remove a context of another thread."""
    raise SessionError(
        f"{method} is on this model because another thread has it open, in foveate.drop or vlm.ask; removing it would "
        "end that thread's request. It ends with that context. foveate.remove is for what foveate.apply put on."
    )


def refuse_stages(method: Method, stages: Sequence[Stage], family: Family, resources: Mapping[str, Any]) -> None:
    """Refuse stages that read what the model, the engine or `resources` lack, or that run at unsupported places."""
    reason = refusal(stages, family.lacks, type(family))
    if reason is not None:
        raise UnsupportedError(f"{method.name} {reason}")
    if any(isinstance(stage, LayerStage) and stage.bias for stage in stages):
        refuse_bias(family, method.name)
    for stage in stages:
        if isinstance(stage, LayerStage) and Rotary() in stage.reads and family.frequencies(stage.layer) is None:
            raise UnsupportedError(
                f"{method.name} reads {Rotary()!r} before layer {stage.layer}, and foveate finds no RoPE in the layers "
                f"of {type(family.text).__name__} from there on. Use a method that does not read it."
            )
    read = {signal.name for stage in stages for signal in stage.reads if isinstance(signal, Resource)}
    if read != set(resources):
        raise SettingError(
            f"{method.name} reads the resources {sorted(read)} here; got {sorted(resources)}. Pass just these: "
            "foveate.drop(model, method, resources={name: …})."
        )


def refuse_bias(family: Family, who: str) -> None:
    """Refuse to add to the logits of keys in a model some of whose layers have other keys, or none."""
    if family.lenders or family.indexed or family.recurrent or family.gathers:
        raise UnsupportedError(
            f"{who} adds to the logits of keys, and layers of {type(family.text).__name__} borrow or pick "
            "keys, or have none. Use a method without a bias."
        )


def refuse_cuts_behind_lenders(family: Family, cuts: Collection[int], reads_less: bool) -> None:
    """Refuse cuts at layers that borrow keys and values. The model may pass only the last row to these layers."""
    if not family.lenders:
        return
    first = min(family.lenders)
    if reads_less or max(cuts, default=0) >= first:
        raise UnsupportedError(
            f"Layers {first} to {max(family.lenders)} of this model attend to keys of earlier layers, and may get only "
            f"the last row. Drop before layers 0 to {first - 1}, and read all tokens while decoding."
        )


def refuse_pages(*_: Any, **__: Any) -> NoReturn:
    """Replace the model's entry to continuous batching, and stop managers that were made before the context."""
    raise UnsupportedError(
        "Continuous batching takes token ids without pictures, and its paged cache cannot hold layers of different "
        "lengths. Inside a dropping context, use generate with a padded batch."
    )


def refuse_candidates(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Wrap `generate` to refuse assisted decoding. Its candidates follow the prompt and would be read as its text."""
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
    """Refuse features from outside the context: a method that reduces in the tower must have seen the tower run."""
    raise UnsupportedError(
        f"{type(method).__name__} reduces tokens in the vision tower, but these image features were computed "
        "outside the context or without their prompt, or chunked prefill has split them. Pass the pictures and the "
        "prompt to the model inside the context, and leave prefill_chunk_size unset."
    )


# -- begin ----------------------------------------------------------------------------------------------------


def refuse_lost_hooks(lost: str) -> NoReturn:
    """Refuse to run after one of the context's hooks was removed or replaced."""
    raise SessionError(
        f"{lost} no longer belongs to foveate: something inside the context has replaced or removed it, the model "
        "calls its parts in another way, or its forward began before another thread opened the context. Exit the "
        "context before you change the model, then open a new one."
    )


def refuse_beside(turn: Turn, alone: bool = True) -> None:
    """Refuse a part of the model that a thread calls while another thread's forward runs between the hooks.

    Args:
        turn: Whose turn it is.
        alone: Whether users may call this part by itself, while no forward runs.
    """
    if turn.owner == threading.get_ident() or (alone and turn.owner is None):
        return
    raise SessionError(
        "This thread has come to a part of a model with a method on it without waiting for its turn: its forward began "
        "before the method was put on, or another thread runs the model. Call the model again, or generate."
    )


def refuse_after_end() -> NoReturn:
    """Refuse a call whose context was closed before it had run."""
    raise SessionError(
        "The dropping context, or what foveate.apply put on, ended in another thread while this call ran or waited for "
        "its turn, so it would not have dropped. Call again, and let calls finish before the context exits."
    )


def refuse_call(kwargs: dict[str, Any], live: Tensor | None, family: Family, columns: int) -> None:
    """Refuse a call that drops tokens if its packing, recomputing, outputs or length do not allow it.

    Args:
        kwargs: The arguments of the decoder's forward.
        live: Which columns are not padding, (samples, columns); None: unknown.
        family: The model's family.
        columns: Columns of this call and of earlier turns.
    """
    # Samples in one row that only position ids separate would be ranked together.
    if kwargs.get("cu_seq_lens_q") is not None or (live is None and _steps_back(kwargs.get("position_ids"))):
        raise UnsupportedError(
            "Several samples are packed into one row, so their vision tokens cannot be ranked separately. "
            "Pass the samples as a padded batch with an attention_mask."
        )
    # A layer that runs again in the backward pass must get the rows it first ran on.
    if recomputes_from_outside(family.layers[0]):
        raise UnsupportedError(
            "Gradient checkpointing in this version of transformers runs layers a second time without the record of "
            "dropped tokens. Turn it off, or install a newer version: pip install -U transformers."
        )
    # transformers balances experts over all prompt tokens in all layers, including dropped ones.
    if kwargs.get("output_router_logits"):
        raise UnsupportedError(
            "output_router_logits needs the tokens of the whole prompt, and some of them are dropped. "
            "Set it to False (also config.text_config.output_router_logits), or keep all tokens."
        )
    # Layers that scale queries by the number of rows before them would count only the rows that are left.
    if columns > family.longest:
        raise UnsupportedError(
            f"This prompt has {columns} columns. From {int(family.longest) + 1} on, layers of this model scale queries "
            "by how many rows come before them, which dropping changes. Use a shorter prompt."
        )


def refuse_targets(targets: Tensor, masks: Sequence[Tensor], family: Family) -> None:
    """Refuse a loss over vision columns: those that are dropped still hold rows of an earlier layer.

    This does not depend on what a picture loses. It takes one host sync.

    Args:
        targets: See `Arrival`.
        masks: Where the vision tokens of each modality are, (samples, columns) bool.
        family: The model's family.
    """
    counts = [((targets != -100) & mask.to(targets.device)).sum() for mask in masks if mask.shape == targets.shape]
    count = int(torch.stack(counts).sum()) if counts else 0
    if count:
        places = [place for place in map(family.placeholder, ("image", "video")) if place is not None]
        columns = " | ".join(f"(input_ids == {place})" for place in places) or "where vision tokens are"
        raise UnsupportedError(
            f"{count} labels are on vision tokens, of which this method drops some, so their loss would come from rows "
            f"that no layer has updated. Mask them: labels[{columns}] = -100. With TRL, give prompt and completion "
            "instead of messages."
        )


def refuse_first_layer(layer: nn.Module, kwargs: dict[str, Any], span: int, caches: bool, gathers: bool) -> None:
    """Refuse the first layer's call if it gets no cache, or if a per-column argument is unknown.

    Args:
        layer: The layer.
        kwargs: The arguments that the model passes by name.
        span: Columns of the call.
        caches: Whether the model was told to cache.
        gathers: Whether the engine reduces every per-column argument to rows.
    """
    for name in kwargs.keys() - LAYER_ARGUMENTS:
        value = kwargs[name]
        # Arguments that the layer does not name, such as labels, go to the kernel, which reads no columns in them.
        by_column = isinstance(value, Tensor) and span in value.shape[-2:] and lacks(layer, (name,)) is None
        if (by_column and not gathers) or isinstance(value, Cache):
            raise unsupported(f"passes its layers {name}, which foveate does not know")
    if caches and cache_of(kwargs) is None:
        raise unsupported("caches, but passes its layers no cache under a name that foveate knows")


LAYER_ARGUMENTS = {"hidden_states", "attention_mask", "position_embeddings", "position_ids", *CACHE_NAMES}


def _steps_back(ids: Any) -> bool:
    """Return whether position ids, (samples, columns) or with four axes in front, ever fail to increase."""
    if not isinstance(ids, Tensor) or ids.shape[-1] == 1:
        return False
    if ids.dim() != 2:
        if ids.shape[0] != 4:  # M-RoPE's three axes may repeat or decrease inside an image
            return False
        ids = ids[0]
    return bool((ids.diff(dim=-1) <= 0).any())


def refuse_layer_call(index: int, expected: int, args: Sequence[Any], kwargs: dict[str, Any]) -> NoReturn:
    """Refuse a layer that is called out of order or with unknown arguments."""
    if index != expected:
        raise UnsupportedError(
            f"The model ran decoder layer {index} where layer {expected} was due. It skips or repeats a layer, so what "
            "is dropped before it would be wrong. foveate supports decoders that run each layer once, in order."
        )
    handed = [*(type(argument).__name__ for argument in args), *kwargs]
    raise unsupported(f"calls its layers in a way that foveate does not know, with ({', '.join(handed)})")


def refuse_changed_rows(index: int) -> NoReturn:
    """Refuse a layer whose input is not the output of the layer before it."""
    raise unsupported(f"changes the output of layer {index - 1} before layer {index} gets it")


def refuse_other_cache() -> NoReturn:
    """Refuse a layer's cache, or that of the answer, that is not the one of the layers before."""
    raise UnsupportedError(
        "A decoder layer or the model's answer has another cache than the layers before, so rows would be missing in "
        "it. Let the model make the cache, or pass one DynamicCache."
    )


# -- each layer -----------------------------------------------------------------------------------------------


def refuse_recurrent_reading(layer: int, recurrent: frozenset[int], depth: int) -> None:
    """Refuse to read attention at a recurrent layer, which has none."""
    if layer in recurrent:
        readable = [str(other) for other in range(depth) if other not in recurrent]
        raise UnsupportedError(
            f"Layer {layer} has no attention to rank by: it carries a state from token to token. "
            f"Read attention at layers {', '.join(readable)}, or use a method that reads none (V2Drop)."
        )


# -- decode ---------------------------------------------------------------------------------------------------


def refuse_pruned_cache_outside() -> NoReturn:
    """Refuse a pruned cache outside its context, where masks have another width."""
    raise SessionError(
        "This cache was pruned by foveate and is used outside its context: masks would be wrong. "
        "Continue inside `with foveate.drop(model, method)`, or start with an empty cache."
    )
