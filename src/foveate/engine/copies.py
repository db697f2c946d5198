"""Decode: caches that continue from another cache.

A transformers layer makes a new tensor for every update, so a copy shares keys and values with its original until it
gets rows of its own. Recurrent states are written in place, so they are cloned.
"""

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils._pytree import tree_map_only

from foveate._transformers import DummyLayer, DynamicLayer, LinearAttentionLayer
from foveate.core.tensors import Change, Memo
from foveate.engine.ancestry import Ancestry, StageRecord, Where
from foveate.engine.cache import CACHE_LAYERS, refuse_cache
from foveate.engine.lives.bare import MEMO_SIZE, PrunedLayer
from foveate.engine.lives.limited import LimitedLayer
from foveate.engine.lives.shared import SharedLayer
from foveate.engine.trace import PrefillRecord

STATES = ("conv_states", "recurrent_states")


def compact(cache: Any) -> Any:
    """Give every tensor of a cache its own memory. Rows that a window keeps are views of longer tensors.

    Raises:
        UnsupportedError: If a layer is of a kind that cannot be copied.
    """
    refuse_cache(cache)
    owned = Memo()  # layers compare columns by tensor identity, so a shared tensor stays shared
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer | DummyLayer) or not layer.is_initialized:
            continue
        if isinstance(layer, PrunedLayer):
            layer.settle()
            layer.leave_room()
            layer.follow(lambda tensor: owned.once(partial(_own_memory, tensor), tensor), rows=False, reorders=True)
        layer.keys, layer.values = _own_memory(layer.keys), _own_memory(layer.values)
    return cache


def copy_of(cache: Any, samples: int = 1) -> Any:
    """Return a cache of `samples` samples that all continue from the one sample of this cache.

    All samples share the rows in memory, except those of sliding windows, which leave, and recurrent states, which
    change.

    Args:
        cache: A cache of one sample; it is not changed.
        samples: How many samples continue from it.
    """
    copied = copy.copy(cache)
    memo, spread = Memo(MEMO_SIZE), Memo()  # layers compare columns by tensor identity: a shared tensor stays shared
    copied.layers = [_layer(layer, memo, spread, samples) for layer in cache.layers]
    return copied


def _layer(layer: Any, memo: Memo, spread: Memo, samples: int) -> Any:
    """Copy one layer.

    Args:
        layer: A layer of one sample.
        memo: Shared by all layers of the copy.
        spread: The repeated tensors made so far, by original.
        samples: How many samples the copy has.
    """
    if type(layer) not in CACHE_LAYERS:  # it may write in place; `compact` refuses it
        return copy.deepcopy(layer)
    copied = copy.copy(layer)
    if isinstance(layer, LinearAttentionLayer):
        for name, states in vars(copied).items():  # dicts hold tensors by index, and flags about each
            if isinstance(states, dict):
                own = tree_map_only(Tensor, lambda state: state.repeat_interleave(samples, 0), states)
                setattr(copied, name, own)
        return copied

    def repeat(tensor: Tensor) -> Tensor:
        if samples == 1:
            return tensor
        return spread.once(lambda: tensor.repeat_interleave(samples, dim=0), tensor)

    if isinstance(layer, PrunedLayer):
        return _pruned(layer, memo, repeat, samples)
    if not layer.is_initialized or isinstance(layer, DummyLayer):
        return copied
    if layer.is_sliding or samples == 1:
        copied.keys, copied.values = repeat(copied.keys), repeat(copied.values)
        return copied
    if type(layer) is DynamicLayer:
        copied = PrunedLayer(copied, memo)
    return SharedLayer(copied, samples)


def _pruned(layer: PrunedLayer, memo: Memo, repeat: Change, samples: int) -> PrunedLayer:
    """Copy a pruned layer; see `_layer`. `repeat` repeats the samples."""
    copied = copy.copy(layer)
    if isinstance(copied, LimitedLayer):
        copied.whole = _pruned(copied.whole, memo, repeat, samples)
        copied.part.memo = memo
        copied.part.follow(repeat)  # what steps read is small
        return copied
    copied.memo = memo
    is_shared = samples > 1 and layer.is_initialized and not layer.is_sliding
    copied.follow(repeat, rows=not is_shared)
    return SharedLayer(copied, samples) if is_shared else copied


def tensors_of(layer: Any) -> Iterator[Tensor]:
    """Yield every tensor that a cache layer holds."""
    if isinstance(layer, PrunedLayer):
        yield from layer.tensors()
        return
    held = [getattr(layer, "keys", None), getattr(layer, "values", None)]
    held += [state for kind in STATES for state in getattr(layer, kind, {}).values()]
    yield from (tensor for tensor in held if isinstance(tensor, Tensor))


def nbytes(cache: Any) -> int:
    """Bytes of all tensors in a cache. Tensors that layers share count once."""
    held = {id(tensor): tensor.nbytes for layer in cache.layers for tensor in tensors_of(layer)}
    return sum(held.values())


def _own_memory(tensor: Tensor) -> Tensor:
    """Return the tensor in memory of exactly its size."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


PLACES: tuple[Where, ...] = ("pixels", "tower", "projector", "layer", "kv")
"""Places of cuts, in the order in which a token meets them."""


def join_records(records: Sequence[PrefillRecord], cache: Any, columns: Sequence[int]) -> PrefillRecord:
    """Join the records of prefills of one sample each whose caches were concatenated.

    At a place where only some of them cut, the others keep what they have.

    Args:
        records: The records.
        cache: The joined cache.
        columns: Columns that each prefill has in it. They differ from its own by text in front.
    """
    cuts = [{(PLACES.index(cut.where), cut.layer or 0): cut for cut in record.cuts} for record in records]
    entered = [record.vision_tokens[0] for record in records]
    ancestries, left, stages = [Ancestry(count) for count in entered], list(entered), []
    for place in sorted(set(itertools.chain(*cuts))):
        before = (sum(left),)
        for index, (of_record, count) in enumerate(zip(cuts, entered, strict=True)):
            if cut := of_record.get(place):
                ((part,),) = cut._ancestries
                ancestries[index], left[index] = replace(part, tokens=count), cut.after[0]
        where, layer = PLACES[place[0]], place[1] if PLACES[place[0]] == "layer" else None
        stages.append(StageRecord(where, layer, before, (sum(left),), [tuple(ancestries)]))
    media = [list(itertools.chain(*(record.media[0] for record in records if record.media)))]
    slots = {index: layer.valid_slots() for index, layer in enumerate(cache.layers) if hasattr(layer, "valid_slots")}
    length = (cache.get_seq_length(),)
    # Text that the joined prompts have in front counts as left.
    pairs = zip(records, columns, strict=True)
    masks = [pad(record.pooling_mask, (count - record.pooling_mask.shape[1], 0), value=1) for record, count in pairs]
    mask, tokens = (torch.cat(masks, dim=1), None, None), (sum(entered),)
    return replace(records[0], rows=length, vision_tokens=tokens, media=media, stages=stages, slots=slots, _left=mask)
