"""Each layer: layers with a state in place of keys, and layers that pick keys by an index."""

from typing import Any

from torch import Tensor

from foveate._transformers import LinearAttentionLayer
from foveate.engine.extension import Extension
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.rows import Rows
from foveate.errors import UnsupportedError
from foveate.families.tap import PICKED, every_slot


class OddLayers(Extension):
    """Lets padding not reach a state, and a layer that picks keys pick all."""

    watches_all = False

    def arguments(self, forward: Forward, call: LayerCall, rows: Rows | None, own: dict[str, Any]) -> None:
        """See `Extension`."""
        if rows is not None and call.index in forward.family.recurrent:
            own["attention_mask"] = _padding(call, rows)
        if call.index in forward.family.indexed and (rows is not None or call.stored is not None):
            picks = _every_pick(forward, call, call.span if rows is None else rows.read.shape[1])
            if PICKED in call.kwargs:
                own[PICKED] = picks


EXTENSION = OddLayers


def _padding(call: LayerCall, rows: Rows) -> Tensor | None:
    """Return which rows of a recurrent layer are not padding, (samples, rows) bool; None without padding."""
    cache, index = call.cache, call.index
    # Padding between a state and the rows that continue from it would make the state decay.
    goes_on = rows.valid is not None and cache is not None and isinstance(cache.layers[index], LinearAttentionLayer)
    if goes_on and cache.has_previous_state(index):
        raise UnsupportedError(
            f"Layer {index} continues from the state of an earlier call, and the samples of this batch keep different "
            "numbers of tokens, so padding would change the state. Continue with one sample at a time."
        )
    mask = call.kwargs.get("attention_mask")
    if mask is None:
        return rows.valid
    real = rows.gather(mask[..., None])[..., 0] != 0  # gather takes (samples, columns, width)
    if rows.valid is None:
        return real
    return real & rows.valid


def _every_pick(forward: Forward, call: LayerCall, rows: int) -> Tensor:
    """Return picks of all keys for `rows` rows of a layer that picks keys by an index. Refuse if it cannot take all."""
    slots, picked = rows + (0 if call.stored is None else call.stored.slots), forward.family.indexed[call.index]
    # An index over the rows left would pick other keys than one over all rows.
    if slots > picked or forward.backend not in ("eager", "sdpa"):
        raise UnsupportedError(
            f"Layer {call.index} picks {picked} keys by an index, and {slots} keys are left: foveate can drop "
            f"tokens there only if all keys are picked, and with sdpa or eager attention; this is "
            f"{forward.backend}. Keep fewer tokens, or load the model with attn_implementation='sdpa'."
        )
    return every_slot(rows, slots, call.input)
