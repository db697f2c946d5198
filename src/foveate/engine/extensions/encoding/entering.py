"""Begin: cuts that the tower has decided, as a cut of the table of rows before layer 0."""

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.engine.ancestry import Where
from foveate.engine.cutting import join_units
from foveate.engine.forward import Forward
from foveate.engine.prompt_samples import Sample
from foveate.engine.rows import Decision


def take_tower_cuts(forward: Forward, hidden: Tensor) -> Tensor:
    """Apply the tower's decisions as a cut before layer 0.

    Args:
        forward: The forward.
        hidden: The decoder's input, (samples, columns, width). An image's rows are in the first of its columns.

    Returns:
        The input, with each row moved to the run of columns of the token that it stands for.
    """
    program = forward.program
    if program.encodes in (None, "thin"):
        return hidden
    before, entering, decisions = forward.vision_left(), forward.table, {}
    is_changed = any(image.changed for sample in forward.samples for image in sample.media)
    for member in entering.members:
        sample = forward.samples[member]
        cut = _tower_cut(sample, is_changed, hidden.device)
        decisions[member] = Decision(cut, tuple([image.started for image in sample.media]))
    forward.outcome.table, merges = entering.keep(decisions)
    for merge in merges:
        if entering.runs[merge.member] is None:  # the rows are where they are stored
            continue
        # Text stands between an image's tokens: move rows to their runs. They came as ordinals of the image's tokens.
        came_from = entering.entered[merge.member][merge.rows]
        moved = merge._replace(rows=hidden[merge.member, came_from], came_from=came_from)
        hidden = entering.store([moved], hidden)
        forward.move_additions(moved, 0)
    if is_changed:
        names: dict[str, Where] = {"subset": "pixels", "projector": "projector"}
        where = names.get(program.encodes, "tower")
        forward.tell_cut(where, None, entering)
        forward.note_cut(where, None, before)
    return hidden


def _tower_cut(sample: Sample, changed: bool, device: torch.device) -> Cut:
    """Join the tower's cuts of a sample's images into one cut.

    If any image of the batch was changed, the cut's rows are ordinals instead of vectors: the places of the rows in the
    stream. An image's rows start at its first token. For example, an image of ordinals 3 4 5 left as two rows gives
    3 4.
    """
    ordinals = torch.arange(len(sample.vision), device=device)
    cuts = []
    places_of = torch.split(ordinals, [image.free for image in sample.media])
    for image, places in zip(sample.media, places_of, strict=True):
        if image.cut is None:
            cut = Cut.stay(image.free)
        else:
            cut = image.cut.to(device)
        if not cut.stays_whole:
            cut = cut.with_rows(places[: image.started])
        cuts.append(cut)
    cut = join_units(cuts, device, lambda: ordinals)
    if changed and cut.rows is None:
        return Cut.merge(ordinals, ordinals, ordinals, cut.notes)
    return cut
