"""A lower bound on the time of a schedule: the model's own decoder layers on as many rows, and nothing else.

Where a schedule drops rows, hidden states, RoPE tables, masks and (if a layer reads them) position ids are sliced to
the last rows. Nothing is scored, gathered by index or put back; the engine does not run, and the final norm sees few
rows too. The model's output is meaningless.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from foveate._transformers import scales_by_position
from foveate.core.patching import Patcher
from foveate.families.base import Family

Slices = dict[tuple[str, int, int], tuple[Any, Any]]
"""Sliced arguments by (name, id, rows): the argument, kept alive so that its id is not reused, and its last rows."""


def obstacle(family: Family, inputs: Mapping[str, Any]) -> str:
    """The reason why a prompt's rows cannot be sliced in this model, in a few words. Empty if they can."""
    kind = family.text.config.model_type
    mask = inputs.get("attention_mask")
    if kind not in family.decoders:
        return f"foveate does not know what layers of {kind} take as arguments"
    if family.recurrent:
        return "layers that carry a state take masks of another form"
    if family.defines("later_additions"):
        return "the model adds tower features between its layers, to all rows"
    if "flex" in family.text.config._attn_implementation:
        return "masks of flex attention cannot be sliced"
    if mask is not None and not bool(mask.all()):
        return "the prompts of the batch differ in length"
    return ""


@contextmanager
def bare(family: Family, rows: Sequence[int]) -> Iterator[None]:
    """Run each decoder layer on the last `rows[layer]` rows of every sample.

    Run one forward inside, over a prompt without an `obstacle`. It leaves a cache whose layers differ in length, from
    which generation cannot continue.

    Args:
        family: The model's family.
        rows: Rows of each layer, text included; never more than in the layer before.
    """
    memo: Slices = {}
    with Patcher() as patches:
        for layer, count in zip(family.layers, rows, strict=True):
            slicer = partial(_slice_rows, count, scales_by_position(layer.self_attn), memo)
            patches.hook(layer, "before", slicer, with_kwargs=True)
        yield


def _slice_rows(
    count: int, needs_ids: bool, memo: Slices, layer: object, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Slice a layer's arguments to the last `count` rows: a forward pre-hook.

    Arguments that several layers share are sliced once, and kept in `memo`.
    """
    if not needs_ids:  # RoPE is in position_embeddings; flash attention would read the ids: a host sync
        kwargs["position_ids"] = None
    if args:
        args = (args[0][:, -count:], *args[1:])
    else:
        kwargs["hidden_states"] = kwargs["hidden_states"][:, -count:]
    for name, last in LAST_ROWS.items():
        argument = kwargs.get(name)
        if argument is None:
            continue
        key = name, id(argument), count
        if key not in memo:
            memo[key] = argument, last(argument, count)
        kwargs[name] = memo[key][1]
    return args, kwargs


def _mask(mask: Tensor, count: int) -> Tensor:
    """Slice an attention mask (samples, heads, rows, columns), or a padding mask (samples, columns)."""
    if mask.ndim == 4:
        return mask[..., -count:, -count:].contiguous()
    return mask[..., -count:]


LAST_ROWS: dict[str, Callable[[Any, int], object]] = {
    # (cos, sin), each (…, rows, head size) -> (…, count, head size)
    "position_embeddings": lambda pair, count: tuple(table[..., -count:, :] for table in pair),
    "attention_mask": _mask,
    "position_ids": lambda ids, count: ids[..., -count:],
}
