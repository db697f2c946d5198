"""Every refusal of the engine: what cannot run while tokens are dropped, said before anything is computed wrongly."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from foveate._transformers import (
    CACHE_NAMES,
    DECODER,
    LAYER,
    Cache,
    LinearAttentionLayer,
    cache_of,
    lacks,
    probe,
    recomputes_from_outside,
    stores_by_layer,
    unknown,
)
from foveate.contract.method import Method
from foveate.contract.stages import LayerStage, Stage
from foveate.core.cut import Cut
from foveate.core.signals import Keys, Resource, Rotary
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.families.support import refusal
from foveate.families.tap import attention_of

CANDIDATES = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")

# -- attach ---------------------------------------------------------------------------------------------------


def refuse_without_weights(model: nn.Module) -> None:
    """Refuse a model that is not there, but only its shapes.

    Raises:
        UnsupportedError: If its weights are on torch's meta device, and nothing brings them where they are needed, as
            accelerate's hooks do.
    """
    weight = next(model.parameters(), None)
    if weight is None or weight.device.type != "meta":
        return
    if not any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise UnsupportedError(
            f"{type(model).__name__} was made without its weights, so it answers nothing: its prompts' tokens and "
            "costs can be counted. Load it with them: fv.load(name)."
        )


def refuse_second_session(model: nn.Module, running: Method | None) -> None:
    """Contexts on one model cannot be nested."""
    if running is not None:
        raise SessionError(
            f"{running} is already applied to this {type(model).__name__}. Contexts cannot be nested: "
            "exit the first one, or call foveate.remove(model)."
        )


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


def refuse_stages(method: Method, stages: Sequence[Stage], family: Family) -> None:
    """A stage may read what this model or this engine has not, or stand where nothing runs."""
    reason = refusal(stages, family.lacks, type(family))
    if reason is not None:
        raise UnsupportedError(f"{method.name} {reason}")
    for stage in stages:
        if isinstance(stage, LayerStage) and Rotary() in stage.reads and family.frequencies(stage.layer) is None:
            raise UnsupportedError(
                f"{method.name} reads {Rotary()!r} before layer {stage.layer}, and foveate finds no RoPE in the layers "
                f"of {type(family.text).__name__} from there on. Use a method that does not read it."
            )


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


def refuse_unencoded(family: Family, encodes: str | None) -> None:
    """What reduces tokens before the decoder stands around the function that encodes pictures."""
    if encodes is not None and not hasattr(family.core, "get_image_features"):
        raise UnsupportedError(
            f"{type(family.core).__name__} encodes pictures within its forward, so tokens cannot be reduced before the "
            "decoder. Use a method that drops between layers."
        )


def refuse_sliced_rows(count: int, text: Sequence[Tensor], span: int) -> None:
    """Where the model computes its last rows alone in layers that borrow keys, these must be rows that are left."""
    if any(int((columns >= span - count).sum()) < count for columns in text):
        raise UnsupportedError(
            f"This model computes only the last {count} rows of its last layers, and some of them may be dropped. Ask "
            "for the last row's logits alone (generate does), or for all, and put text behind the picture."
        )


def refuse_resources(method: Method, stages: Sequence[Stage], resources: Mapping[str, Any]) -> None:
    """What was handed in by name must be what the stages read by name."""
    read = {signal.name for stage in stages for signal in stage.reads if isinstance(signal, Resource)}
    for name in sorted(read - set(resources)):
        raise UnsupportedError(
            f"{method.name} reads the resource {name!r}, and none was handed in. Hand it in: "
            f"foveate.drop(model, method, resources={{{name!r}: …}})."
        )
    for name in sorted(set(resources) - read):
        raise SettingError(f"{method.name} reads no resource {name!r} here. Leave it out of resources.")


def refuse_unknown_text(ids: Tensor | None, columns: int) -> None:
    """What encodes text gets its ids."""
    if ids is None or ids.shape[1] != columns:
        raise UnsupportedError(
            "The question's token ids are encoded for this method, and this prompt came as embeddings. Pass input_ids."
        )


def refuse_copies() -> NoReturn:
    """A copy of an attached model would run the original's layers."""
    raise SessionError(
        "A model cannot be copied or pickled inside a dropping context: the copy would run the original's layers. "
        "Exit the context, or call foveate.remove(model), and then copy."
    )


def refuse_threads() -> NoReturn:
    """Two forwards at once would each drop from the other's tokens; `generate` takes turns by itself."""
    raise SessionError(
        "Another thread is generating with this model. Call generate, which waits for its turn, or hold a lock of your "
        "own around the model's forwards."
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


def refuse_offloaded_tower(family: Family, error: Exception) -> None:
    """transformers cannot fit position embeddings to a smaller picture where these are not in memory."""
    if any(weight.is_meta for weight in family.core.parameters()):
        raise UnsupportedError(
            "The vision tower's weights are offloaded, so transformers cannot interpolate its position embeddings "
            "for a smaller picture. Keep the tower in memory in the device_map, or use AveragePool."
        ) from error


def refuse_foreign_features(method: Method) -> NoReturn:
    """A method that reduces in the tower must have seen the tower run."""
    raise UnsupportedError(
        f"{type(method).__name__} reduces tokens in the vision tower, but these image features were computed "
        "outside the context or without their prompt, or chunked prefill has split them. Pass the pictures and the "
        "prompt to the model inside the context, and leave prefill_chunk_size unset."
    )


# -- begin ----------------------------------------------------------------------------------------------------


def refuse_unplaced_pictures() -> NoReturn:
    """Pictures without places in the prompt cannot be found among the decoder's rows."""
    raise UnsupportedError(
        "The model encoded pictures but did not report their positions in the prompt, so foveate cannot drop tokens. "
        "Write a family for this model: docs/guides/new-family.md."
    )


def refuse_lost_hooks(lost: str) -> NoReturn:
    """Without one of its hooks the context knows half of what the model does."""
    raise SessionError(
        f"{lost} is not foveate's any more: something inside the context has replaced or removed it, or the model "
        "calls its parts in another way. Exit the context before you change the model, and open a new one afterwards."
    )


def refuse_unseen_pictures(name: str) -> NoReturn:
    """Pictures that were encoded by another function than is known."""
    raise unknown(f"encodes {name} in another way than by get_image_features or get_video_features of the model's core")


def refuse_partly_masked(masked: bool) -> None:
    """The rows of an image that the tower has reduced stand in its first columns, so none may be masked."""
    if masked:
        raise UnsupportedError(
            "The attention_mask hides some tokens of an image whose tokens were reduced in the tower. "
            "Unmask all tokens of the image."
        )


def refuse_unknown_frames(frames: Sequence[int] | None, tokens: int) -> None:
    """What goes by frame must know where frames begin."""
    if frames is not None and sum(frames) != tokens:
        raise UnsupportedError(
            "Where this video's frames begin is not known, so its tokens cannot be ranked frame by frame: its family "
            "does not report the frames, or the attention_mask hides some tokens. Use scope='image' or 'sample'."
        )


def refuse_frames_behind_tower(stage: Stage, frames: Sequence[int] | None, sizes: Sequence[int]) -> None:
    """Where tokens left before the decoder, it is known how many of a video are left, and not of each frame."""
    if frames is not None and len(frames) != len(sizes):
        raise UnsupportedError(
            f"{stage} ranks each frame separately, but an earlier stage has dropped tokens before the decoder, so the "
            "number of tokens left in each frame is not known. Use scope='image' or 'sample'."
        )


def refuse_unknown_cells(known: int, tokens: int) -> None:
    """What works on the grid of an image must know it."""
    if known != tokens:
        raise UnsupportedError(
            "The rows and columns of this picture's tokens are not known: its features were computed elsewhere, or the "
            "attention_mask hides some tokens. Pass the picture itself, and unmask all its tokens."
        )


def refuse_call(kwargs: dict[str, Any], live: Tensor | None, layer: nn.Module, cache_layers: Sequence[type]) -> None:
    """A call in which tokens will be dropped: its cache, packing, recomputing and outputs must allow it."""
    refuse_cache(cache_of(kwargs), cache_layers)
    _refuse_packing(kwargs, live)
    _refuse_recomputing(layer)
    _refuse_router_logits(kwargs)


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
    if not stores_by_layer(cache):
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


def _refuse_packing(kwargs: dict[str, Any], live: Tensor | None) -> None:
    """Several samples in one row, told apart by position ids alone, would be ranked together."""
    if kwargs.get("cu_seq_lens_q") is not None or (live is None and _steps_back(kwargs.get("position_ids"))):
        raise UnsupportedError(
            "Several samples are packed into one row, so their vision tokens cannot be ranked separately. "
            "Pass the samples as a padded batch with an attention_mask."
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


def _refuse_recomputing(layer: nn.Module) -> None:
    """A layer that runs again in the backward pass must find the rows it ran on."""
    if recomputes_from_outside(layer):
        raise UnsupportedError(
            "Gradient checkpointing in this version of transformers runs layers a second time without the record of "
            "dropped tokens. Turn it off, or install a newer version: pip install -U transformers."
        )


def _refuse_router_logits(kwargs: dict[str, Any]) -> None:
    """transformers balances experts over all tokens of the prompt in all layers, also those that were dropped."""
    if kwargs.get("output_router_logits"):
        raise UnsupportedError(
            "output_router_logits needs the tokens of the whole prompt, and some of them are dropped. "
            "Set it to False (also config.text_config.output_router_logits), or keep all tokens."
        )


def refuse_long_prompt(columns: int, longest: float) -> None:
    """Where layers count the rows that they get, and scale queries by that, rows left would be counted anew."""
    if columns > longest:
        raise UnsupportedError(
            f"This prompt has {columns} columns, and from {int(longest) + 1} on layers of this model scale queries by "
            "how many rows come before them, which dropping changes. Use a shorter prompt."
        )


def refuse_split_image() -> NoReturn:
    """An image cut in two by chunked prefill would be ranked in two halves."""
    raise UnsupportedError(
        "Chunked prefill has split an image, so its tokens cannot be ranked together. "
        "Leave prefill_chunk_size unset, or choose a size that splits no image."
    )


def refuse_layer_call(index: int, expected: int, args: Sequence[Any], kwargs: dict[str, Any]) -> NoReturn:
    """A layer that is called out of turn, or in another way than is known."""
    if index != expected:
        raise UnsupportedError(
            f"The model ran decoder layer {index} where layer {expected} was due, so it leaves a layer out or repeats "
            "one, and what is dropped before it would be wrong. foveate serves decoders that run each layer once, in "
            "order."
        )
    given = [*(type(argument).__name__ for argument in args), *kwargs]
    raise unknown(f"calls its layers in a way that foveate does not know, with ({', '.join(given)})")


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


def refuse_unknown_units(stage: Stage, sizes: Sequence[int] | None, several_frames: bool) -> None:
    """A stage that ranks images or frames by themselves must know which tokens are whose."""
    if sizes is None:
        raise UnsupportedError(
            f"{stage} ranks each {stage.unit} separately, but an earlier cut ranked all images of a sample together, "
            f"so the number of tokens left in each {stage.unit} is not known. Give both the same scope."
        )
    if stage.unit == "image" and several_frames:
        raise UnsupportedError(
            f"{stage} ranks each video as a whole, but an earlier stage ranked frame by frame. Give both the same "
            "scope."
        )


def refuse_reading_ahead(stage: Stage, layer: int, first: Cut) -> None:
    """The second stage before one layer works on what the first one left, whose attention nothing has computed."""
    ahead = any(isinstance(signal, Keys) or getattr(signal, "layer", "") == "next" for signal in stage.reads)
    if first.stays is not None or ahead:
        raise UnsupportedError(
            f"Two stages cut before layer {layer}, and the second reads values that are not computed for the tokens "
            "left by the first. Move one of them to another layer."
        )


def refuse_additions_by_number(additions: Any) -> None:
    """Where rows move to other places, what is added to these later must move along."""
    if not isinstance(additions, list):
        raise UnsupportedError(
            "This model adds features of its pictures before several layers, which foveate cannot move along with rows "
            "that are merged, or that have text between them. Use a method that drops between layers, and merges none."
        )


def refuse_unknown_owners(sizes: Sequence[int] | None, left: Sequence[int] | None) -> None:
    """Merged rows go to their image's columns, so it must be known which rows are whose."""
    if sizes is None or left is None:
        raise SettingError(
            "A stage that merges must know which rows belong to which image. Set scope='image' (of a stage: "
            "unit='image'), and give a count that does not depend on tensor values."
        )


def refuse_empty_prompt(lengths: Sequence[int]) -> None:
    """A decoder cannot run on no rows at all."""
    if not any(lengths):
        raise UnsupportedError(
            "Every token of the prompt was dropped: the prompt has no text, and no vision token was kept. "
            "Always keep a token (min_keep=1), or add text."
        )


def refuse_recurrent_reading(layer: int, recurrent: frozenset[int], depth: int) -> None:
    """A recurrent layer pays no attention that could be read."""
    if layer in recurrent:
        readable = [str(other) for other in range(depth) if other not in recurrent]
        raise UnsupportedError(
            f"Layer {layer} has no attention to rank by: it carries a state from token to token. "
            f"Read attention at layers {', '.join(readable)}, or use a method that reads none (V2Drop)."
        )


def refuse_windowed_reading(layer: int) -> NoReturn:
    """What a step reads cannot be told by a layer that sees only the latest tokens."""
    raise UnsupportedError(
        f"Layer {layer} has a sliding window, so its attention does not reach all vision tokens. Read from a layer on "
        "before which one sees everything."
    )


def refuse_recurrent_padding(layer: int, ragged: bool, cache: Any) -> None:
    """Padding between a state and the rows that go on from it makes the state fade."""
    if not ragged or cache is None or not isinstance(cache.layers[layer], LinearAttentionLayer):
        return
    if cache.has_previous_state(layer):
        raise UnsupportedError(
            f"Layer {layer} continues from the state of an earlier call, and the samples of this batch keep different "
            "numbers of tokens, so padding would change the state. Continue with one sample at a time."
        )


def refuse_scaled_reading(layer: int, length: int, most: int) -> None:
    """Scores leave out what an attention scales queries by, which is 1 in the prompts its model first learnt on."""
    if length > most:
        raise UnsupportedError(
            f"Layer {layer} scales queries from position {most} on, and foveate's attention scores do not. This prompt "
            f"has {length} positions. Use a shorter prompt, or a method that reads no attention (V2Drop)."
        )


def refuse_scaled_flash(layer: int, backend: str) -> None:
    """An attention that scales queries by position needs ids, and flash attention reads gaps in these as ends."""
    if "flash" in backend:
        raise UnsupportedError(
            f"Layer {layer} needs position ids, and flash attention would read gaps between the kept positions as the "
            "ends of packed sequences. Load the model with attn_implementation='sdpa'."
        )


def refuse_sliding_flash(layer: int, module: nn.Module, backend: str) -> None:
    """Flash attention counts a sliding window in stored tokens, not in the columns of the unpruned sequence."""
    attention = attention_of(module)
    if "flash" in backend and getattr(attention, "sliding_window", None) is not None:
        raise UnsupportedError(
            f"Layer {layer} has a sliding window, and flash attention counts it in stored tokens: after dropping, the "
            "window would reach too far. Load the model with attn_implementation='sdpa'."
        )


def refuse_unknown_backend(backend: str) -> NoReturn:
    """A ragged batch needs a mask, of a form that the kernel reads."""
    raise UnsupportedError(
        f"The samples of this batch keep different numbers of tokens, so they need a mask, and the mask format of the "
        f"attention kernel {backend!r} is not known. Use sdpa, eager, flash or flex attention, or run one sample at "
        "a time, or register sdpa_mask for the kernel in transformers' AttentionMaskInterface."
    )


# -- finish ---------------------------------------------------------------------------------------------------


def refuse_lost_layers(ran: int, depth: int) -> None:
    """If a layer did not come by, the model left it out, or it has got another forward meanwhile."""
    if ran < depth:
        raise SessionError(
            f"Tokens were dropped in {ran} of {depth} decoder layers: the model ran no more of them, or the forward of "
            "the others was replaced inside the context, for example by removing accelerate's hooks. Exit the context "
            "before you change the model, and open a new one afterwards."
        )


def refuse_other_counts(planned: Sequence[int | None], left: Sequence[int]) -> None:
    """What is left at the end must be what the method's plan says, where it says it beforehand."""
    for sample, (wanted, got) in enumerate(zip(planned, left, strict=True)):
        if wanted not in (None, got):
            raise SessionError(
                f"Sample {sample} has {got} vision tokens left, and the method's plan says {wanted}. This is a fault "
                "of foveate or of the method: please report it, with what `foveate check MODEL` prints."
            )


def refuse_lost_rows(index: int) -> NoReturn:
    """A cache layer that does not hold what its layer ran on."""
    raise unknown(f"does not store in layer {index} of the cache the rows that decoder layer {index} ran on")


def refuse_unknown_positions() -> NoReturn:
    """Rows are numbered anew, and ranked by RoPE, from the position ids that the model hands its rotary embedding."""
    raise unknown("hands the decoder's rotary_emb no position_ids, and this method numbers rows anew or reads Rotary()")


def refuse_unknown_mask(width: int, total: int) -> NoReturn:
    """A mask whose columns are not those of the unpruned sequence."""
    raise unknown(f"makes masks of {width} columns where the sequence has {total}")


def refuse_other_rows(got: int, wanted: int) -> NoReturn:
    """What a layer stores must be the rows that it ran on."""
    raise unknown(f"stores {got} rows in a layer of the cache where its decoder layer ran on {wanted}")


# -- decode ---------------------------------------------------------------------------------------------------


def refuse_pruned_cache_outside() -> NoReturn:
    """Outside its context a pruned cache gets masks of another width."""
    raise SessionError(
        "This cache was pruned by foveate and is used outside its context: masks would be wrong. "
        "Continue inside `with foveate.drop(model, method)`, or start with an empty cache."
    )


def refuse_crop(window: int) -> NoReturn:
    """What a sliding window has let go of cannot come back."""
    raise UnsupportedError(
        f"A layer with a sliding window of {window} tokens has discarded all earlier tokens, so the cache cannot be "
        "cropped. Call activate_past_recording on the cache before the prompt."
    )


def refuse_crop_of_head(rows: int) -> NoReturn:
    """Rows that several samples share are nobody's to take back."""
    raise UnsupportedError(
        f"Of this cache only the {rows} tokens behind its shared beginning can be removed. Remove fewer, or begin anew."
    )


def refuse_picking(index: int, slots: int, picked: int, backend: str) -> None:
    """Beyond as many slots as a row picks, an index of what is left would pick others than that of all."""
    if backend not in ("eager", "sdpa"):
        raise UnsupportedError(
            f"Layer {index} picks keys by an index, and how attention {backend!r} reads what is picked is not known. "
            "Load the model with attn_implementation='sdpa'."
        )
    if slots > picked:
        raise UnsupportedError(
            f"Layer {index} picks {picked} keys by an index, and {slots} are left for it: foveate drops there only "
            "while all are picked. Keep fewer tokens, or use shorter prompts and answers."
        )


def refuse_latent_keys(stored: bool) -> None:
    """Where layers store latents in the place of keys (MLA), what rows pay to earlier turns cannot be made of these."""
    if stored:
        raise UnsupportedError(
            "This model stores latents, and no keys, of earlier turns, so attention that a later picture's prompt pays "
            "cannot be read. Use a method that reads no attention (V2Drop), or begin anew."
        )
