"""Begin: what RoPE makes of the positions that vision tokens enter with, for stages before decoder layers."""

import torch
from torch import Tensor

from foveate.core.picks import snap
from foveate.engine.arguments import ids_of
from foveate.engine.cache import length_of
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.program import rotary_note


def note_turns(forward: Forward, call: LayerCall) -> None:
    """Remember of every row what `Rotary` has of it, for the stages that read it.

    Args:
        forward: Knows position ids, and the rows that are left.
        call: That of layer 0, before anything is cut there.
    """
    device = call.hidden.device
    places = _places(forward, call).to(device)  # (axes, samples, columns)
    for bucket in forward.outcome.buckets:
        if not bucket.left:
            continue
        bucket.to(device)
        own = places[:, bucket.owners, bucket.positions_of().clamp(min=0)]  # (axes, samples, left)
        made: dict[int, Tensor] = {}  # layers share frequencies
        for layer in forward.program.turned:
            frequencies = forward.family.frequencies(layer)
            assert frequencies is not None  # refused where the method was put on
            if id(frequencies) not in made:
                made[id(frequencies)] = _means(own, frequencies.to(device))
            bucket.notes[rotary_note(layer)] = made[id(frequencies)]


def _places(forward: Forward, call: LayerCall) -> Tensor:
    """Positions of all columns of a forward, (axes, samples, columns) int64, a prompt's first token at 0.

    Ids may count padding in front of it. In later turns one running number goes on from the tokens of earlier ones;
    several axes, M-RoPE's, are the model's own, as columns do not tell them.
    """
    ids = ids_of(forward)
    earlier: int | Tensor = 0 if call.cache is None else max(0, length_of(call.cache))
    ids = ids.expand(*ids.shape[:-2], forward.count, -1)
    if ids.dim() > 2 and earlier:
        return ids
    ids = ids.reshape(-1, *ids.shape[-2:])  # (axes, samples, columns)
    first = ids[:, torch.arange(forward.count, device=ids.device), forward.first.to(ids.device)]
    if forward.live is not None:
        earlier = (forward.live[:, : -forward.span] != 0).sum(dim=1, keepdim=True).to(ids.device)
    return ids - first[..., None] + earlier


def _means(places: Tensor, frequencies: Tensor) -> Tensor:
    """Mean cosine and mean sine of the angles that are turned by: (axes, samples, rows) -> (samples, rows, 2)."""
    is_double = places.device.type != "mps"
    dtype = torch.float64 if is_double else torch.float32
    angles = places[..., None].to(dtype) * frequencies.to(dtype)  # (axes, samples, rows, pairs)
    turned = (frequencies != 0).to(dtype)
    means = [(table * turned).sum(dim=-1).mean(dim=0) / turned.sum() for table in (angles.cos(), angles.sin())]
    stacked = torch.stack(means, dim=-1)
    if is_double:
        return snap(stacked)
    return stacked
