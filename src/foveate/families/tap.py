"""Reading an attention module's queries and keys while its own kernel runs."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, NamedTuple

from torch import Tensor, nn

from foveate._transformers import ALL_ATTENTION_FUNCTIONS, AttentionInterface, kind_of
from foveate.core.patching import Patcher
from foveate.core.tensors import take_along
from foveate.errors import UnsupportedError

__all__ = [
    "TAP",
    "AttentionHook",
    "Tapped",
    "attention_of",
    "made_by_itself",
    "tap",
    "tapped",
    "tapped_layer",
    "unreadable",
]

TAP = "foveate_tap"

AttentionHook = Callable[[Tensor, Tensor, float], None]
"""Called with the queries and the keys of all samples, (samples, heads, tokens, head size), and the scaling of their
product."""


class Tapped(NamedTuple):
    """What one attention module attended with; see `AttentionHook`."""

    queries: Tensor
    keys: Tensor
    scaling: float

    def sample(self, index: int) -> "Tapped":
        """That of one sample: (heads, tokens, head size)."""
        return Tapped(self.queries[index], self.keys[index], self.scaling)

    def at(self, tokens: Tensor | slice) -> "Tapped":
        """Some tokens of one sample."""
        keys = self.keys[:, tokens]
        queries = keys if self.queries is self.keys else self.queries[:, tokens]
        return Tapped(queries, keys, self.scaling)


class _Config:
    """A module's config with the tap as its attention. Other modules and the masks keep the real one."""

    def __init__(self, real: Any, see: AttentionHook) -> None:
        self._real = real
        self._see = see
        self._attn_implementation = TAP

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Show queries and keys, and let the real kernel go on."""
    config: _Config = module.config
    real = config._real
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5  # 1 / √(head size), what kernels take by default
    config._see(query, key, scaling)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(real._attn_implementation, eager)
    with Patcher() as patches:
        patches.put(module, "config", real)  # flash attention reads it
        return kernel(module, query, key, value, attention_mask, **kwargs)


def tap(patches: Patcher, module: nn.Module, see: AttentionHook) -> None:
    """Call `see` whenever this attention module runs, until the patcher restores it; its output stays what it was.

    A module may be called several times, once for each of its packed sequences.
    """
    AttentionInterface.register(TAP, _attend)
    patches.put(module, "config", _Config(module.config, see))


@contextmanager
def tapped(module: nn.Module, see: AttentionHook) -> Iterator[None]:
    """As `tap`, inside a context."""
    with Patcher() as patches:
        tap(patches, module, see)
        yield


# -- decoder layers ------------------------------------------------------------------------------------------------


def attention_of(layer: nn.Module) -> Any:
    """The module of a decoder layer that attends; None where none does, or several do."""
    usual = getattr(layer, "self_attn", None)
    if usual is not None:
        return usual
    attending = [module for module in layer.modules() if kind_of(module) in ("attention", "hybrid")]
    return attending[0] if len(attending) == 1 else None


def tapped_layer(layer: Any, see: AttentionHook) -> AbstractContextManager[None]:
    """Call `see(queries, keys, scaling)` with what a decoder layer's attention is about to attend with.

    Raises:
        UnsupportedError: If probabilities depend on more than that.
    """
    attention = attention_of(layer)
    # A sink, as gpt-oss has, takes a share of every row that queries and keys do not tell.
    if attention is None or hasattr(attention, "sinks"):
        raise unreadable(layer if attention is None else attention)
    return tapped(attention, see)


class _Enough(Exception):
    """Queries and keys are there; the rest of the attention need not run."""


def made_by_itself(layer: Any, hidden: Any, queries: Tensor, given: Mapping[str, Any]) -> Tapped:
    """`Family.queries_and_keys` as the layer itself makes them: it may norm, or leave RoPE out, in ways of its own.

    Args:
        layer: The decoder layer; its own forward runs up to where it attends.
        hidden: Its input, as it takes it.
        queries: Rows whose queries are wanted, (samples, …) int64.
        given: What else it gets, by name; neither a mask nor a cache.
    """
    heads = list[Tapped]()
    places = queries[:, None, :, None]  # (samples, 1, …, 1): the same for all heads and numbers

    def note(query: Tensor, key: Tensor, scaling: float) -> None:
        asking = take_along(query, places, dim=2)
        heads.append(Tapped(asking, key, scaling))
        raise _Enough

    with suppress(_Enough), tapped_layer(layer, note):
        type(layer).forward(layer, hidden, attention_mask=None, **given)
    if not heads:
        raise unreadable(attention_of(layer))
    return heads[0]


def unreadable(attention: Any) -> UnsupportedError:
    """The refusal to read an attention whose queries and keys are made, or used, in an unknown way."""
    return UnsupportedError(
        f"foveate cannot read the attention of {type(attention).__name__}: the way it attends is not known. "
        "Override queries_and_keys in the family, or use a method that reads no attention (V2Drop)."
    )
