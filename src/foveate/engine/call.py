"""The state of one call of the decoder."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from foveate.engine.prefill import Prefill
from foveate.engine.rows import RowMap

__all__ = ["Call"]


@dataclass(slots=True, eq=False)
class Call:
    """One forward of the decoder: a prefill, a decode step or a later turn.

    Attributes:
        backend: Name of the attention implementation.
        prompt: Its vision tokens; None where there are none, or all stay.
        idle: Whether every layer runs as if nobody were here: there is no prompt, and nothing has left its cache.
        live: (samples, unpruned columns), nonzero where a column is no padding; None if all are, or nobody asks.
        ids: Position ids, (samples or 1, columns); None until the model has made them, or where nobody asks.
        masks: Re-mapped masks, made once for all layers alike: ((mask, layout, base, its end), result).
        moved: What layers on other devices read, made once for all of a device: (as it was given, there).
        rotaries: (cos, sin) of positions that moved up, made once for all layers alike: ((shift, type of RoPE), pair).
    """

    backend: str = "sdpa"
    prompt: Prefill | None = None
    idle: bool = False
    live: Tensor | None = None
    ids: Tensor | None = None
    masks: list[tuple[tuple[Any, RowMap | None, Tensor | None, int], Any]] = field(default_factory=list)
    moved: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    rotaries: list[tuple[tuple[Tensor, str | None], tuple[Tensor, Tensor]]] = field(default_factory=list)
