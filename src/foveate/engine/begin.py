"""Begin: where the vision tokens of a forward are, whether any may be dropped, and the state that the layers change."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.engine import guards
from foveate.engine.cache import CACHE_LAYERS, PrunedLayer, length_of
from foveate.engine.cutting import take_tower_cuts
from foveate.engine.encode import media_in
from foveate.engine.finish import Ending
from foveate.engine.forward import Forward
from foveate.engine.program import Program
from foveate.engine.samples import Sample, read_samples
from foveate.engine.trace import Counted, PrefillRecord
from foveate.families.base import Family

__all__ = ["begin"]


def begin(
    forward: Forward, program: Program, family: Family, kwargs: dict[str, Any], ending: Ending | None, split: bool
) -> Tensor | None:
    """Begin a forward in front of the decoder's first layer.

    Args:
        forward: Its state, filled by the hooks on the way here.
        program: The method's stages.
        family: Knows the model.
        kwargs: The arguments of the decoder's forward.
        ending: How the forward before this one ended, where it ended in an image.
        split: Whether chunked prefill will cut an image in two.

    Returns:
        The decoder's input if the tower has changed it, else None. A prefill gets its `forward.record` here.
    """
    cache = kwargs.get("past_key_values")
    embeds = kwargs.get("inputs_embeds")
    forward.backend = str(family.text.config._attn_implementation)
    # Idle until tokens may be dropped below, unless layers of the cache have lost some in an earlier forward.
    forward.idle = not any(type(layer) is PrunedLayer for layer in getattr(cache, "layers", ()))
    live = _live(kwargs, forward.arguments)
    masks = [(mask, media_in(forward, program, family, modality, mask)) for modality, mask in forward.placeholders]
    if forward.encoded and forward.arguments and not masks:
        guards.refuse_unplaced_pictures()
    forward.let_go_of_arguments()  # the layers need no pixels
    if embeds is None or not masks:
        forward.record = _text_record(family, kwargs, live)
        return None
    span = embeds.shape[1]
    samples = read_samples(masks, _last_columns(live, span), program.by_frame, program.reads_cells)
    drops = _drops(samples, program)
    if drops:
        guards.refuse_call(kwargs, live, family.layers[0], CACHE_LAYERS)
    if drops and split:
        guards.refuse_split_image()
    if ending is not None and _splits_image(ending, cache, samples) and (drops or ending.dropped):
        guards.refuse_split_image()
    forward.record = _record(family, samples, live, span, cache)
    if not drops:  # every layer runs untouched
        forward.record.note_that_all_stay(sorted(program.cuts))
        return None
    forward.live, forward.idle = live, False
    forward.additions = family.added_later(kwargs)
    forward.drop_in(samples, program, embeds)
    return take_tower_cuts(forward, program, embeds)


def _live(kwargs: dict[str, Any], arguments: dict[str, Any]) -> Tensor | None:
    """Which columns are no padding, from the first two-dimensional mask; None if there is none.

    A core may make the decoder's masks itself, so its own arguments are searched too.
    """
    for mask in (kwargs.get("attention_mask"), arguments.get("attention_mask")):
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return mask
    return None


def _last_columns(live: Tensor | None, span: int) -> Tensor | None:
    """The part of `live` that is of this forward's columns: those of earlier turns stand before them."""
    if live is None:
        return None
    return live[:, -span:]


def _splits_image(ending: Ending, cache: Any, samples: Sequence[Sample]) -> bool:
    """Whether an image began in the forward before this one and goes on in this one."""
    return ending.goes_on_in(cache) and any(sample.starts for sample in samples)


def _drops(samples: Sequence[Sample], program: Program) -> bool:
    """Whether tokens will be dropped, as far as can be said beforehand."""
    if any(image.changed for sample in samples for image in sample.media):
        return True
    for sample in samples:
        count = len(sample.vision)
        if count == 0:
            continue
        plan = program.plan(sample.sizes)  # None where the picture or the question decides
        if plan is None or (plan and min(plan) < count):
            return True
    return False


def _record(family: Family, samples: Sequence[Sample], live: Tensor | None, span: int, cache: Any) -> PrefillRecord:
    """What the trace keeps of a prefill with pictures."""
    rows: Sequence[int] = tuple(sample.live for sample in samples)
    # Earlier turns count too: the mask has their columns, or the cache their number.
    if live is not None and live.shape[1] > span:
        rows = Counted(live.sum(dim=1))
    elif live is None and cache is not None:
        rows = tuple(count + max(0, length_of(cache)) for count in rows)
    return PrefillRecord(
        depth=len(family.layers),
        rows=rows,
        vision_tokens=tuple(sample.vision_tokens for sample in samples),
        media=[sample.media for sample in samples],
        fit=family.fit,
    )


def _text_record(family: Family, kwargs: dict[str, Any], live: Tensor | None) -> PrefillRecord | None:
    """A fresh prompt without pictures is a prefill too, in which nothing can be dropped; a decode step is none."""
    prompt, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
    if prompt is None:
        prompt = kwargs.get("input_ids")
    if prompt is None or prompt.shape[1] == 1 or (cache is not None and length_of(cache) != 0):
        return None
    samples = prompt.shape[0]
    rows: Sequence[int] = (prompt.shape[1],) * samples
    if live is not None:
        rows = Counted(live.sum(dim=1))
    return PrefillRecord(len(family.layers), rows, (0,) * samples)
