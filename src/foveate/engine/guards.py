"""Calls that cannot run while tokens are dropped, refused before anything is computed."""

from typing import Any, NoReturn

from torch import Tensor, nn

from foveate._transformers import recomputes_from_outside
from foveate.errors import UnsupportedError

__all__ = ["refuse_packing", "refuse_pages", "refuse_recomputing", "refuse_router_logits"]


def refuse_pages(*_: Any, **__: Any) -> NoReturn:
    """Stand in for the way into continuous batching, and end the call of a manager made before the context."""
    raise UnsupportedError(
        "Continuous batching takes token ids without pictures and packs all requests into one row, over a cache in "
        "pages that cannot differ in length between layers. Use generate with a padded batch while tokens are dropped."
    )


def refuse_router_logits(kwargs: dict[str, Any]) -> None:
    """transformers balances experts over all tokens of the prompt in all layers, also those that have left."""
    if kwargs.get("output_router_logits"):
        raise UnsupportedError(
            "output_router_logits asks how experts share the tokens of the whole prompt, of which some have left. "
            "Set it to False (also config.text_config.output_router_logits), or keep all tokens."
        )


def refuse_packing(kwargs: dict[str, Any], live: Tensor | None) -> None:
    """Several samples in one row, told apart by position ids alone, would be ranked together."""
    ids = kwargs.get("position_ids")
    packed = kwargs.get("cu_seq_lens_q") is not None
    if not packed and live is None and isinstance(ids, Tensor) and ids.shape[-1] > 1:
        row = ids if ids.dim() == 2 else ids[0] if ids.shape[0] == 4 else None
        packed = row is not None and bool((row.diff(dim=-1) <= 0).any())
    if packed:
        raise UnsupportedError(
            "Several samples packed into one row cannot be told apart when tokens are ranked. "
            "Pass them as a padded batch with an attention_mask."
        )


def refuse_recomputing(layer: nn.Module) -> None:
    """A layer that runs again in the backward pass must find the rows it ran on."""
    if recomputes_from_outside(layer):
        raise UnsupportedError(
            "Gradient checkpointing in this version of transformers runs layers again when the tokens that left are "
            "forgotten. Turn it off, or install a newer one: pip install -U transformers."
        )
