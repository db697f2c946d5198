"""The least time a schedule can take: a model's own decoder layers on as many rows, and nothing else.

Where rows leave, hidden states are sliced to the last so many, and RoPE tables, masks and, where a layer asks for them,
position ids with them. Nothing is scored, gathered by index or put back, and no engine stands around the layers; the
last norm has few rows too. What comes out means nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from foveate._transformers import scales_by_position
from foveate.families.base import Family

__all__ = ["bare", "obstacle"]


def obstacle(family: Family, inputs: Mapping[str, Any]) -> str:
    """Why a prompt's rows cannot just be sliced in this model, in a few words; empty where they can."""
    kind, mask = family.text.config.model_type, inputs.get("attention_mask")
    if kind not in family.decoders:
        return f"what layers of {kind} are given is not known"
    if family.recurrent:
        return "layers that carry a state are given masks of another form"
    if family.late_additions(family.model.config):
        return "the model adds tower features between its layers, to all rows"
    if "flex" in family.text.config._attn_implementation:
        return "masks of flex attention cannot be sliced"
    if mask is not None and not bool(mask.all()):
        return "the prompts of the batch differ in length"
    return ""


@contextmanager
def bare(family: Family, rows: Sequence[int]) -> Iterator[None]:
    """Run each decoder layer on the last `rows[layer]` rows of every sample.

    For one forward over a prompt without an `obstacle`: it leaves a cache whose layers differ in length, from which no
    model can go on.

    Args:
        family: Of the model.
        rows: Of each layer, text included; never more than in the layer before.
    """
    known: dict[tuple[int, int], tuple[Any, Any]] = {}
    with ExitStack() as stack:
        for layer, count in zip(family.layers, rows, strict=True):
            hook = partial(_before, count, scales_by_position(layer.self_attn), known)
            stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _before(
    count: int,
    needs_ids: bool,
    known: dict[tuple[int, int], tuple[Any, Any]],
    _: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments for its last `count` rows; what many layers are given is sliced once."""
    if not needs_ids:  # RoPE is in position_embeddings; flash attention would look through them, and wait for it
        kwargs["position_ids"] = None
    if args:
        args = (args[0][:, -count:], *args[1:])
    else:
        kwargs["hidden_states"] = kwargs["hidden_states"][:, -count:]
    for name, last in SLICED.items():
        whole = kwargs.get(name)
        if whole is not None:
            key = id(whole), count
            if key not in known:
                known[key] = whole, last(whole, count)  # the whole one too, so that its id stays its own
            kwargs[name] = known[key][1]
    return args, kwargs


def _tables(pair: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """(cos, sin), (…, rows, head size) each."""
    return tuple(table[..., -count:, :] for table in pair)


def _mask(mask: Tensor, count: int) -> Tensor:
    """What each row sees, (samples, heads, rows, columns), or which columns are real, (samples, columns)."""
    return mask[..., -count:, -count:].contiguous() if mask.ndim == 4 else mask[..., -count:]


def _ids(ids: Tensor, count: int) -> Tensor:
    """(…, rows)."""
    return ids[..., -count:]


SLICED: dict[str, Callable[[Any, int], Any]] = {
    "position_embeddings": _tables,
    "attention_mask": _mask,
    "position_ids": _ids,
}
