"""Reading an attention module's queries and keys while its own kernel runs."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

__all__ = ["TAP", "tapped"]

TAP = "foveate_tap"


class _Config:
    """A module's config, but for the name of its attention: other modules and the masks keep the real one."""

    def __init__(self, real: Any, see: Callable[[Tensor, Tensor, float], None]) -> None:
        self._real = real
        self._see = see
        self._attn_implementation = TAP

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Show queries and keys, (samples, heads, tokens, head size), and let the real kernel go on."""
    tap: _Config = module.config
    real = tap._real
    scaling = kwargs.get("scaling")
    tap._see(query, key, query.shape[-1] ** -0.5 if scaling is None else scaling)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(real._attn_implementation, eager)
    module.config = real  # flash attention reads it
    try:
        return kernel(module, query, key, value, attention_mask, **kwargs)
    finally:
        module.config = tap


@contextmanager
def tapped(module: nn.Module, see: Callable[[Tensor, Tensor, float], None]) -> Iterator[None]:
    """Call `see(queries, keys, scaling)` whenever this attention module runs; its output stays what it was.

    A module may be called several times, once for each of its packed sequences.
    """
    AttentionInterface.register(TAP, _attend)
    real = module.config
    module.config = _Config(real, see)  # type: ignore[assignment]
    try:
        yield
    finally:
        module.config = real
