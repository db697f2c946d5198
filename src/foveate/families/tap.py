"""Tap: read an attention module's queries and keys while its own kernel runs."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from foveate._transformers import ALL_ATTENTION_FUNCTIONS, AttentionInterface, attention_of, keeps_index
from foveate.core.attention import attention_rows, received_attention
from foveate.core.patching import Patcher
from foveate.core.signals import TowerAttention, TowerSignal
from foveate.core.tensors import send, take_along, without_autocast
from foveate.errors import UnsupportedError

TAP = "foveate_tap"
PACKED = "foveate_tap_of_flash_attention"
"""As `TAP`, for a bias under a kernel that takes packed sequences at once. transformers looks for "flash" in the
name.
"""
CHANNELS = 8  # kernels require head sizes in steps of 8

AttentionHook = Callable[[Tensor, Tensor, float, Tensor], None]
"""Called with the queries, keys, scaling and values of all samples.

Queries and keys are (samples, heads, tokens, head size), the scaling is that of their product, and values are (samples,
key heads, tokens, size).
"""

MaskHook = Callable[[Tensor, Tensor, Any, Mapping[str, Any]], None]
"""Called with the queries, the keys, the mask and the options that the kernel gets."""


Bias = Callable[[Tensor], Tensor]
"""Returns what to add to the logits of a kernel's keys.

From keys, (samples, heads, keys, head size), to (samples or 1, 1, 1, keys) float32.
"""


class Tapped(NamedTuple):
    """The queries, keys and scaling of one attention module's call; see `AttentionHook`."""

    queries: Tensor
    keys: Tensor
    scaling: float

    def sample(self, index: int) -> "Tapped":
        """The queries and keys of one sample, each (heads, tokens, head size)."""
        return Tapped(self.queries[index], self.keys[index], self.scaling)

    def at(self, tokens: Tensor | slice) -> "Tapped":
        """The queries and keys of some tokens of one sample."""
        keys = self.keys[:, tokens]
        queries = self.queries[:, tokens] if self.queries is not self.keys else keys
        return Tapped(queries, keys, self.scaling)

    @without_autocast
    def read(self, signal: TowerSignal, cls: bool = False) -> Tensor:
        """A signal of an image's patches: (patches, 1) attention, or (patches, size) keys, float32.

        Args:
            signal: The signal.
            cls: True if the first token is a CLS; it is left out.
        """
        if isinstance(signal, TowerAttention):
            return self._attention(signal, cls)[:, None]
        keys = self.keys[:, 1:] if cls else self.keys
        if signal.heads == "joined":
            return _side_by_side(keys).float()
        return keys.float().mean(dim=0)

    def _attention(self, signal: TowerAttention, cls: bool) -> Tensor:
        """The attention that the patches receive: (patches,) float32."""
        queries, keys, scaling = self
        if signal.heads == "joined":
            keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)  # one key head for each query head
            queries, keys = _side_by_side(queries)[None], _side_by_side(keys)[None]
            scaling = queries.shape[-1] ** -0.5
        if signal.by == "patches":
            return received_attention(queries, keys, scaling)[int(cls) :]
        (row,) = attention_rows(queries[:, :1], keys, scaling)  # (heads, 1, 1 + patches)
        return row[:, 0, 1:].sum(dim=0)


def _side_by_side(heads: Tensor) -> Tensor:
    """(heads, tokens, head size) -> (tokens, heads · head size)."""
    return heads.transpose(0, 1).flatten(1)


@dataclass(slots=True, eq=False)
class _Config:
    """A module's config with the tap as its attention. Other modules and the masks keep the real config."""

    _real: Any
    _see: AttentionHook | None = None
    _see_mask: MaskHook | None = None
    _bias: Bias | None = None
    _segments: "Segments | None" = None
    _attn_implementation: str = TAP

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def is_tapped(config: Any) -> bool:
    """True if a module's config was replaced by one of this file."""
    return type(config) is _Config  # isinstance would run the Python of a config that computes its attributes


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Show queries and keys to the hooks, then call the real kernel."""
    config: _Config = module.config
    real = config._real
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5  # 1 / √(head size), the default of kernels
    if config._see is not None:
        config._see(query, key, scaling, value)
    if config._see_mask is not None:
        config._see_mask(query, key, attention_mask, kwargs)
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(real._attn_implementation, _eager_of(type(module).forward))
    with Patcher() as patches:
        patches.put(module, "config", real)  # flash attention reads it
        if config._segments is not None:
            return config._segments.attend(
                partial(kernel, module, attention_mask=None, **kwargs), query, key, value
            ), None
        if config._bias is None:
            return kernel(module, query, key, value, attention_mask, **kwargs)
        bias, kwargs = config._bias(key), {**kwargs, "scaling": scaling}
        if real._attn_implementation in ("sdpa", "eager"):
            mask = bias.to(query)
            if attention_mask is not None and attention_mask.dtype == torch.bool:
                mask = mask.masked_fill(~attention_mask, float("-inf"))
            elif attention_mask is not None:
                mask = attention_mask + mask
            return kernel(module, query, key, value, mask, **kwargs)
        output, *others = kernel(module, *_in_channels(query, key, value, bias, scaling), attention_mask, **kwargs)
        return output[..., : value.shape[-1]], *others


def _in_channels(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Extend queries, keys and values with channels, for a kernel without a bias: q · k grows by bias / scaling.

    In low precision the bias is split: a large part in one channel, and the remainder in a second one.
    """
    # Clamp, because -inf times 0 is nan in padded channels. −3e4 fits half precision and is far below every logit.
    wanted = (bias / scaling).clamp(min=-3e4).transpose(-1, -2)  # (samples or 1, 1, keys, 1)
    large = wanted.to(key.dtype)
    small = (wanted - large.float()).to(key.dtype)
    ones = torch.ones_like(query[..., :2])
    queries = pad(torch.cat((query, ones), dim=-1), (0, CHANNELS - 2))
    parts = torch.cat((large, small), dim=-1).expand(*key.shape[:-1], 2)
    keys = pad(torch.cat((key, parts), dim=-1), (0, CHANNELS - 2))
    return queries, keys, pad(value, (0, CHANNELS))


@functools.cache
def _eager_of(forward: Callable[..., Any]) -> Any:
    """The function that an attention's forward falls back to. Llama 4's tower has another one than its decoder."""
    forward = inspect.unwrap(forward)
    names = [name for name in forward.__code__.co_names if name.endswith("eager_attention_forward")]
    return forward.__globals__.get((names or ["eager_attention_forward"])[0])


def tap(patches: Patcher, module: nn.Module, see: AttentionHook, see_mask: MaskHook | None = None) -> None:
    """Call `see` whenever this attention module runs, until the patcher restores it. Its output does not change.

    A module may be called several times, once for each of its packed sequences.
    """
    AttentionInterface.register(TAP, _attend)
    patches.put(module, "config", _Config(module.config, see, see_mask))


def add_bias(patches: Patcher, module: Any, bias: Bias) -> None:
    """Add a bias to the logits of an attention module's keys whenever it runs, until the patcher restores it.

    Kernels that take a mask get it as a mask; others get it as channels of queries and keys.
    """
    name = PACKED if "flash" in str(module.config._attn_implementation) else TAP
    AttentionInterface.register(name, _attend)
    patches.put(module, "config", _Config(module.config, _bias=bias, _attn_implementation=name))


# -- packed sequences ----------------------------------------------------------------------------------------------


class Segments:
    """Packed sequences that attend only to themselves; all sequences of one length run in one call of the kernel.

    Lengths 4 2 4 are two calls: one for the first and third sequence, one for the second.

    Args:
        ends: Where sequences end, with a leading 0, (segments + 1,), on the host.
        device: The device of the rows.
    """

    def __init__(self, ends: Tensor, device: torch.device) -> None:
        self.whole = ends[[0, -1]]
        """The ends of all rows as a single sequence."""
        starts, lengths = ends[:-1].long(), ends.diff()
        counts = sorted(set(lengths.tolist()))
        groups = [starts[lengths == count, None] + torch.arange(count) for count in counts]
        self._count = len(lengths)
        self._places: list[Tensor] = []  # (segments, rows) for each length; empty if all lengths are equal
        if len(groups) > 1:
            # Lengths 2 1 2: rows in the order of the calls are 2 | 0 1 3 4, and `_back` is 1 2 0 3 4.
            order = torch.cat([places.flatten() for places in groups])
            self._places = [send(places, device) for places in groups]
            self._back = send(order.argsort(), device)

    def attend(self, kernel: Callable[..., Any], *states: Tensor) -> Tensor:
        """Run the kernel on queries, keys and values, each (1, heads, rows, size): (1, rows, heads, size)."""
        heads = [state[0] for state in states]
        if not self._places:
            together = [state.view(len(state), self._count, -1, state.shape[-1]).transpose(0, 1) for state in heads]
            one_length: Tensor = kernel(*together)[0]
            return one_length.flatten(0, 1)[None]
        of_lengths = [kernel(*(state[:, places].transpose(0, 1) for state in heads))[0] for places in self._places]
        return torch.cat([rows.flatten(0, 1) for rows in of_lengths])[self._back][None]


def segments_of(ends: Iterable[Tensor], device: torch.device) -> dict[int, Segments]:
    """Segments of each tensor of ends that is on the host and has two or more sequences, by the tensor's id."""
    return {id(each): Segments(each, device) for each in ends if each.device.type == "cpu" and len(each) > 2}


def attend_at_once(patches: Patcher, attentions: Iterable[Any], segments: Mapping[int, Segments]) -> None:
    """Let attention modules of a packed tower call SDPA once for all sequences of one length, with the same bits.

    Modules that are tapped, biased or wrapped by others still call it for each sequence, and so does every other
    kernel.

    Args:
        attentions: Modules that get the ends of sequences as `cu_seqlens`.
        segments: See `segments_of`.
    """
    if not segments:
        return
    AttentionInterface.register(TAP, _attend)

    def attend(module: Any, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        of_call = segments.get(id(kwargs.get("cu_seqlens")))
        if of_call is None:
            return original(*args, **kwargs)
        with Patcher() as patches:
            patches.put(module, "config", _Config(module.config, _segments=of_call))
            return original(*args, **{**kwargs, "cu_seqlens": of_call.whole})

    for module in attentions:
        is_own = not is_tapped(module.config) and "forward" not in vars(module)
        if is_own and module.config._attn_implementation == "sdpa":
            patches.wrap(module, "forward", partial(attend, module))


# -- keys before RoPE ----------------------------------------------------------------------------------------------


def run_unturned(module: Any, see: AttentionHook, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call `see` with an attention module's queries and keys without RoPE, then run the module as it was called.

    Raises:
        UnsupportedError: If it has RoPE that its arguments do not show.
    """
    config = module.config
    while isinstance(config, _Config):  # other taps must see only the second run, with RoPE
        config = config._real
    plain_args, plain_kwargs = (
        [_turning_nothing(arg) for arg in args],
        {k: _turning_nothing(v) for k, v in kwargs.items()},
    )
    tables = [a is not b for a, b in zip((*args, *kwargs.values()), (*plain_args, *plain_kwargs.values()), strict=True)]
    if not any(tables):
        _refuse_untold(module)
    with Patcher() as patches:
        patches.put(module, "config", config)
        tap(patches, module, see)
        with torch.no_grad():  # a checkpointed block would not repeat this run
            forward(*plain_args, **plain_kwargs)
    return forward(*args, **kwargs)


def unturning(layer: nn.Module, tables: Any) -> Any:
    """Replace a decoder layer's RoPE tables by ones that do not rotate.

    Raises:
        UnsupportedError: If its attention has RoPE that these tables do not show.
    """
    plain = _turning_nothing(tables)
    if plain is tables:
        _refuse_untold(attention_of(layer))
    return plain


def _refuse_untold(attention: Any) -> None:
    """Refuse an attention with RoPE whose arguments do not contain it."""
    code = inspect.getsource(type(attention).forward)
    if any(word in code for word in ("rotary", "rope", "freqs")):
        raise UnsupportedError(
            f"foveate cannot read the keys of {type(attention).__name__} before RoPE: its arguments have no tables. "
            "Use a method that reads no keys."
        )


def _turning_nothing(argument: Any) -> Any:
    """Replace RoPE's tables, (cos, sin) or complex numbers, by those of position 0. Other arguments are unchanged."""
    if isinstance(argument, Tensor) and argument.is_complex():
        return torch.ones_like(argument)
    if isinstance(argument, tuple | list) and len(argument) == 2:
        cos, sin = argument
        if isinstance(cos, Tensor) and isinstance(sin, Tensor) and cos.is_floating_point() and cos.shape == sin.shape:
            return torch.ones_like(cos), torch.zeros_like(sin)
    return argument


# -- decoder layers ------------------------------------------------------------------------------------------------


@contextmanager
def tapped_layer(layer: Any, see: AttentionHook) -> Iterator[None]:
    """Call `see(queries, keys, scaling, values)` before a decoder layer's attention runs its kernel.

    Raises:
        UnsupportedError: If attention probabilities depend on more than these.
    """
    attention = attention_of(layer)
    # An attention sink, as in gpt-oss, takes a share of every row that queries and keys do not show.
    if attention is None or hasattr(attention, "sinks"):
        raise unreadable(attention or layer)
    with Patcher() as patches:
        tap(patches, attention, see)
        yield


PICKED = "prev_topk_indices"
"""Argument of a layer that uses the keys picked by an earlier layer's index."""


def takes_index(layer: nn.Module) -> bool:
    """True if a decoder layer gets the keys picked by an earlier layer's index."""
    return PICKED in inspect.signature(type(layer).forward).parameters


def every_slot(rows: int, slots: int, hidden: Tensor) -> Tensor:
    """Picks of rows that attend to all slots, (samples, rows, slots) int32."""
    every = torch.arange(slots, dtype=torch.int32, device=hidden.device)
    return every.expand(len(hidden), rows, -1)


class _Enough(Exception):
    """Raised to stop an attention when its queries and keys are known."""


def queries_and_keys_of(layer: Any, hidden: Any, queries: Tensor, others: Mapping[str, Any]) -> Tapped:
    """`Family.queries_and_keys` as computed by the layer itself, which may have special norms, or leave RoPE out.

    Args:
        layer: The decoder layer. Its own forward runs up to its attention.
        hidden: Its input.
        queries: Rows whose queries are needed, (samples, …) int64.
        others: Its other arguments by name, without mask and cache.
    """
    heads = list[Tapped]()
    places = queries[:, None, :, None]  # (samples, 1, …, 1): broadcast over heads and head size

    def note(query: Tensor, key: Tensor, scaling: float, _: Tensor) -> None:
        asking = take_along(query, places, dim=2)
        heads.append(Tapped(asking, key, scaling))
        raise _Enough

    mask = None
    if takes_index(layer) or any(map(keeps_index, layer.modules())):  # an index needs a mask; let it pick all keys
        rows = hidden.shape[1]
        mask = hidden.new_ones(len(hidden), 1, rows, rows, dtype=torch.bool)
        if takes_index(layer):
            others = {**others, PICKED: every_slot(rows, rows, hidden)}
    with suppress(_Enough), tapped_layer(layer, note):
        type(layer).forward(layer, hidden, attention_mask=mask, **others)
    if not heads:
        raise unreadable(attention_of(layer))
    return heads[0]


def unreadable(attention: Any) -> UnsupportedError:
    """The error for an attention whose queries and keys are made, or used, in an unknown way."""
    return UnsupportedError(
        f"foveate cannot read the attention of {type(attention).__name__}: the way it attends is not known. "
        "Override queries_and_keys in the family, or use a method that reads no attention (V2Drop)."
    )
