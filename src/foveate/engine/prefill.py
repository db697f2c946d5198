"""Begin, and finish: finds a forward's vision tokens before the decoder, and completes it after the last layer."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import unsupported
from foveate.core.tensors import without_autocast
from foveate.engine import guards
from foveate.engine.cache import PrunedLayer, find_pruned, length_of, refuse_cache
from foveate.engine.forward import Arrival, Forward
from foveate.engine.media_tokens import MediaTokens, image_lengths, tagged_media
from foveate.engine.prompt_samples import read_samples
from foveate.engine.unseen import refuse_unseen
from foveate.errors import SessionError, UnsupportedError
from foveate.families.placing import lengths_of, pieces_of
from foveate.families.vision import PictureLayout

# -- begin --------------------------------------------------------------------------------------------------------


def begin(forward: Forward, arrival: Arrival, kwargs: dict[str, Any], cache: Any) -> None:
    """Find out what a forward is, before the decoder's first layer. Nothing is cut yet.

    Args:
        forward: A new forward.
        arrival: Filled by the hooks before the decoder.
        kwargs: The arguments of the decoder's forward.
        cache: The cache among these.
    """
    program, family, embeds = forward.program, forward.family, kwargs.get("inputs_embeds")
    prompt: Any = kwargs.get("input_ids") if embeds is None else embeds
    forward.count, forward.span = (0, 0) if prompt is None else prompt.shape[:2]
    forward.position_ids, forward.live = arrival.position_ids, _live(kwargs, arrival.arguments)
    forward.goes_on, forward.uses_cache = arrival.goes_on, kwargs.get("use_cache") is not False
    forward.is_prompt = is_prompt = forward.span > 1 or (prompt is not None and arrival.goes_on)
    # The cache comes first: a layer that reads less must be whole before anything below looks at its length.
    pruned = [layer for layer in getattr(cache, "layers", ()) if isinstance(layer, PrunedLayer)]
    # A prompt, or a method without a decode stage, reads the whole cache again. A single row continues an answer.
    for layer in pruned if is_prompt or program.reading is None else ():
        layer.settle()
    masks = _media(forward, arrival)
    if arrival.targets is not None and program.drops:
        guards.refuse_targets(arrival.targets, [mask for mask, _ in masks], family)
    if prompt is not None and (is_prompt or masks):
        forward.unpadded = torch.ones(forward.count, forward.span, dtype=torch.int64, device=prompt.device)
        if forward.live is not None:  # it has columns of earlier turns in front
            forward.unpadded *= (forward.live[:, -forward.span :] != 0).to(prompt.device)
    if embeds is not None and masks:
        _begin_images(forward, arrival, kwargs, cache, masks)
    else:
        _begin_text(forward, arrival, kwargs, cache, is_prompt)


def _live(*calls: Mapping[str, Any]) -> Tensor | None:
    """Return the first 2-D mask of these calls: which columns are not padding, those of earlier turns in front."""
    masks = (arguments.get("attention_mask") for arguments in calls)  # a core may build the decoder's masks itself
    return next((mask for mask in masks if isinstance(mask, Tensor) and mask.dim() == 2), None)


def _begin_text(forward: Forward, arrival: Arrival, kwargs: dict[str, Any], cache: Any, is_prompt: bool) -> None:
    """Begin a forward in which no vision token is known: a prompt of text, or a decode step."""
    program = forward.program
    if is_prompt and program.stages:
        refuse_unseen(forward, arrival, arrival.arguments or kwargs, cache)
    # A fresh prompt without images is a prefill too, though nothing can be dropped. A decode step is not.
    forward.is_prefill = forward.span > 1 and (cache is None or length_of(cache) == 0)


def _begin_images(
    forward: Forward,
    arrival: Arrival,
    kwargs: dict[str, Any],
    cache: Any,
    masks: Sequence[tuple[Tensor, Sequence[MediaTokens]]],
) -> None:
    """Begin a prompt with images; see `begin`.

    Args:
        forward, arrival, kwargs, cache: See `begin`.
        masks: Where the vision tokens are, and their images, by modality.
    """
    program, family, live = forward.program, forward.family, forward.live
    embeds = kwargs["inputs_embeds"]
    forward.samples = samples = read_samples(masks, forward.unpadded, program.by_frame, program.reads_cells)
    forward.plans = [None] * len(samples)  # unknown beforehand: the tower has cut, or the image or the question decides
    if not any(image.changed for sample in samples for image in sample.media):
        forward.plans = [program.plan(sample.sizes) if len(sample.vision) else () for sample in samples]
    counts = [len(sample.vision) for sample in samples]
    pairs = zip(forward.plans, counts, strict=True)
    drops = any(plan is None or (plan and min(plan) < count) for plan, count in pairs)
    # Steps may read less after this prompt.
    reads = program.reading is not None and forward.is_prompt and forward.uses_cache and any(counts)
    if drops or reads:
        columns = forward.span + max(0, 0 if cache is None else length_of(cache))
        refuse_cache(cache)
        guards.refuse_call(kwargs, live, family, columns)
    goes_on = arrival.behind_image and (drops or arrival.behind_cut) and any(sample.starts for sample in samples)
    if goes_on or (drops and arrival.splits):
        raise UnsupportedError(
            "Chunked prefill has split an image, or cut it off the question that the method reads, so its tokens "
            "cannot be ranked. Leave prefill_chunk_size unset, or choose a larger size."
        )
    forward.is_prefill, forward.drops = True, drops or reads
    if not forward.drops:
        return
    forward.caches = kwargs.get("use_cache") is True and not family.text.training
    forward.additions = family.later_additions(kwargs)
    forward.drop_in(embeds, arrival.last_only)
    # What is left of the samples is known now: the question's encodings and the tower's cuts are stored there.
    _note_text(forward, arrival.ids)


@without_autocast
def _note_text(forward: Forward, ids: Tensor | None) -> None:
    """Note resources' encodings of the ids, (samples, columns), of the text behind the images."""
    program = forward.program
    if not program.encodes_text:
        return
    if ids is None or ids.shape[1] != forward.span:
        raise UnsupportedError(
            "This method encodes the question's token ids, but this prompt came as embeddings. Pass input_ids."
        )
    rows = ids.cpu()
    table = forward.table
    for member, signal in itertools.product(table.members, program.encodes_text):
        encode, sample = program.resources[signal.name].text, forward.samples[member]
        # Encode each text once. Texts behind a sample's images all end at its end, so the length identifies them.
        words = {count: sample.words[len(sample.words) - count :] for count in sample.text_after}
        by_length = {count: encode(rows[member][columns]) for count, columns in words.items()}
        encoded = torch.stack([by_length[count] for count in sample.text_after])
        table.about[member][repr(signal)] = encoded.to(table.device)


def _media(forward: Forward, arrival: Arrival) -> list[tuple[Tensor, list[MediaTokens]]]:
    """Return where the vision tokens of each modality are, (samples, columns) bool, and its images or videos.

    Args:
        forward: Knows the method and the model.
        arrival: Has the encoder outputs.

    Raises:
        UnsupportedError: If the model encoded pictures in an unknown way or did not say where they are. Or if the
            method reduces in the tower, and these features were not computed inside the context.
    """
    core, gathers = forward.family.core, forward.family.gathers
    for modality, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        encodes = hasattr(core, f"get_{modality}_features") or not gathers
        if encodes and arrival.arguments.get(name) is not None and modality not in arrival.encoded:
            functions = "get_image_features or get_video_features of the model's core"
            raise unsupported(f"encodes {name} in another way than by {functions}")
    if arrival.encoded and arrival.arguments and not arrival.placeholders:
        raise UnsupportedError(
            "The model encoded pictures but did not report their positions in the prompt, so foveate cannot drop "
            "tokens. Write a family for this model: docs/guides/new-family.md."
        )
    return [(mask, _media_of(forward, arrival, modality, mask)) for modality, mask in arrival.placeholders]


def _media_of(forward: Forward, arrival: Arrival, modality: str, mask: Tensor) -> list[MediaTokens]:
    """Return the images (or videos) of a forward's prompt, by the tags of their features."""
    program, family = forward.program, forward.family
    if not hasattr(family.core, f"get_{modality}_features"):
        if program.encodes is not None:
            guards.refuse_foreign_features(program.method)
        runs = image_lengths(family, modality, mask, arrival.ids) or []
        return [MediaTokens(length, PictureLayout, video=modality == "video") for length in itertools.chain(*runs)]
    if modality not in arrival.encoded:
        return []
    output = arrival.encoded[modality]
    lengths = arrival.image_lengths.get(modality)
    if lengths is None:
        lengths = image_lengths(family, modality, mask, arrival.ids, lengths_of(pieces_of(output)))
    return tagged_media(output, lengths, program, family, modality)


# -- finish -------------------------------------------------------------------------------------------------------


def finish(forward: Forward, cache: Any) -> None:
    """Complete a prompt: refuse one in which a layer did not run, and call the extensions.

    Args:
        forward: A forward that has run through all layers.
        cache: Holds what the layers stored; None if the model runs without one.
    """
    if forward.drops:
        _refuse_other_counts(forward)
        if cache not in (None, forward.cache):
            guards.refuse_other_cache()
        cache = forward.cache
        if cache is not None:
            _refuse_lost_rows(forward, cache)
    for end in forward.extensions.end:
        end(forward, cache)


def _refuse_other_counts(forward: Forward) -> None:
    """Refuse a forward that ran other layers than the model has, or left other tokens than the method's plan says."""
    ran, depth = len(forward.outcome.ran), len(forward.family.layers)
    if ran < depth:
        raise SessionError(
            f"Tokens were dropped in {ran} of {depth} decoder layers: the model ran no more layers, or the forward of "
            "the others was replaced inside the context, for example by removing accelerate's hooks. Exit the context "
            "before you change the model, then open a new one."
        )
    left_of = zip(forward.plans, forward.samples, forward.vision_left(), strict=True)
    for number, (plan, sample, left) in enumerate(left_of):
        if plan and left != plan[-1] + sample.fixed:
            raise SessionError(
                f"Sample {number} has {left} vision tokens left, but the method's plan says {plan[-1] + sample.fixed}. "
                "This is a bug in foveate or in the method. Please report it with the output of `foveate check MODEL`."
            )


def _refuse_lost_rows(forward: Forward, cache: Any) -> None:
    """Refuse a model that did not store a layer's rows in its cache."""
    others = {*forward.family.recurrent, *forward.family.lenders}
    for index, rows in enumerate(forward.outcome.ran):
        if rows is None or index in others:
            continue
        layer = find_pruned(cache, index)
        if layer is None or not layer.is_whole:
            raise unsupported(f"does not store in cache layer {index} the rows that decoder layer {index} ran on")
