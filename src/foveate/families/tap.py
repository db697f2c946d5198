"""Reading an attention module's queries and keys while its own kernel runs."""

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

from foveate._transformers import ALL_ATTENTION_FUNCTIONS, AttentionInterface, keeps_index, kind_of
from foveate.core.patching import Patcher
from foveate.core.tensors import send, take_along
from foveate.errors import UnsupportedError

TAP = "foveate_tap"
PACKED = "foveate_tap_of_flash_attention"
"""As `TAP`, for a bias under a kernel that takes packed sequences at once: transformers looks for the word."""
CHANNELS = 8  # kernels want head sizes in steps of 8

AttentionHook = Callable[[Tensor, Tensor, float, Tensor], None]
"""Called with the queries and the keys of all samples, (samples, heads, tokens, head size), the scaling of their
product, and the values, (samples, key heads, tokens, size)."""

MaskHook = Callable[[Tensor, Tensor, Any, Mapping[str, Any]], None]
"""Called with the queries, the keys, the mask and the options that the kernel gets."""


Bias = Callable[[Tensor], Tensor]
"""Of the keys that a kernel gets, (samples, heads, keys, head size), what is added to their logits: (samples or 1, 1,
1, keys) float32."""


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
        queries = self.queries[:, tokens] if self.queries is not self.keys else keys
        return Tapped(queries, keys, self.scaling)


@dataclass(slots=True, eq=False)
class _Config:
    """A module's config with the tap as its attention. Other modules and the masks keep the real one."""

    _real: Any
    _see: AttentionHook | None = None
    _see_mask: MaskHook | None = None
    _bias: Bias | None = None
    _segments: "Segments | None" = None
    _attn_implementation: str = TAP

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def is_tapped(config: Any) -> bool:
    """Whether a module's config is one that something here has put in the place of its own."""
    return isinstance(config, _Config)


def _attend(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any) -> Any:
    """Show queries and keys, and let the real kernel go on."""
    config: _Config = module.config
    real = config._real
    scaling = kwargs.get("scaling")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5  # 1 / √(head size), what kernels take by default
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
    """Queries, keys and values of a kernel that adds no bias, with channels more: q · k is larger by bias / scaling.

    As a number of few bits the bias has a large part, and in a second channel what that leaves.
    """
    # -inf times the zeros of other channels would be nan; in half precision the least number is still far below all.
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
    """What an attention's forward falls back to: Llama 4's tower has another function than its decoder."""
    forward = inspect.unwrap(forward)
    names = [name for name in forward.__code__.co_names if name.endswith("eager_attention_forward")]
    return forward.__globals__.get((names or ["eager_attention_forward"])[0])


def tap(patches: Patcher, module: nn.Module, see: AttentionHook, see_mask: MaskHook | None = None) -> None:
    """Call `see` whenever this attention module runs, until the patcher restores it; its output stays what it was.

    A module may be called several times, once for each of its packed sequences.
    """
    AttentionInterface.register(TAP, _attend)
    patches.put(module, "config", _Config(module.config, see, see_mask))


def add_bias(patches: Patcher, module: Any, bias: Bias) -> None:
    """Add to the logits of an attention module's keys whenever it runs, until the patcher restores it.

    Kernels that take a mask get it as one; others as channels of queries and keys.
    """
    name = PACKED if "flash" in str(module.config._attn_implementation) else TAP
    AttentionInterface.register(name, _attend)
    patches.put(module, "config", _Config(module.config, _bias=bias, _attn_implementation=name))


# -- packed sequences ----------------------------------------------------------------------------------------------


class Segments:
    """Packed sequences that attend to themselves alone, those of one length in one call of the kernel.

    Lengths 4 2 4 are two calls: one of the first and the third sequence, one of the second.

    Args:
        ends: Where they end, 0 in front, (segments + 1,), on the host.
        device: Where the rows are.
    """

    def __init__(self, ends: Tensor, device: torch.device) -> None:
        self.whole = ends[[0, -1]]
        """The ends of all rows as one sequence."""
        starts, lengths = ends[:-1].long(), ends.diff()
        counts = sorted(set(lengths.tolist()))
        groups = [starts[lengths == count, None] + torch.arange(count) for count in counts]
        self._count = len(lengths)
        self._places: list[Tensor] = []  # (segments, rows) of each length; none where all have one
        if len(groups) > 1:
            order = torch.cat([places.flatten() for places in groups])
            self._places = [send(places, device) for places in groups]
            self._back = send(order.argsort(), device)

    def attend(self, kernel: Callable[..., Any], *states: Tensor) -> Tensor:
        """What the kernel makes of queries, keys and values of all rows, each (1, heads, rows, size): (1, rows, heads,
        size)."""
        heads = [state[0] for state in states]
        if not self._places:
            together = [state.view(len(state), self._count, -1, state.shape[-1]).transpose(0, 1) for state in heads]
            one_length: Tensor = kernel(*together)[0]
            return one_length.flatten(0, 1)[None]
        of_lengths = [kernel(*(state[:, places].transpose(0, 1) for state in heads))[0] for places in self._places]
        return torch.cat([made.flatten(0, 1) for made in of_lengths])[self._back][None]


def segments_of(ends: Iterable[Tensor], device: torch.device) -> dict[int, Segments]:
    """Where sequences end, by the id of the tensor on the host that says so; of those that name two or more."""
    return {id(each): Segments(each, device) for each in ends if each.device.type == "cpu" and len(each) > 2}


def attend_at_once(patches: Patcher, attentions: Iterable[Any], segments: Mapping[int, Segments]) -> None:
    """Let attention modules of a packed tower call SDPA once for all sequences of one length, with the same bits.

    Modules that are tapped or biased, or whose forward somebody stands around, go on calling it for each, and so does
    every other kernel.

    Args:
        attentions: They are handed where sequences end by the name `cu_seqlens`.
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
    """Call `see` with what an attention module attends with where RoPE turns nothing, then let it run as it is called.

    Raises:
        UnsupportedError: If it has RoPE that its arguments do not tell.
    """
    config = module.config
    while isinstance(config, _Config):  # taps of others see the run as it is called
        config = config._real
    plain_args, plain_kwargs = (
        [_turning_nothing(one) for one in args],
        {k: _turning_nothing(v) for k, v in kwargs.items()},
    )
    tables = [a is not b for a, b in zip((*args, *kwargs.values()), (*plain_args, *plain_kwargs.values()), strict=True)]
    if not any(tables):
        _refuse_untold(module)
    with Patcher() as patches:
        patches.put(module, "config", config)
        tap(patches, module, see)
        forward(*plain_args, **plain_kwargs)
    return forward(*args, **kwargs)


def unturning(layer: nn.Module, tables: Any) -> Any:
    """What a decoder layer is handed in the place of these tables, so that RoPE turns nothing.

    Raises:
        UnsupportedError: If its attention has RoPE that they do not tell.
    """
    plain = _turning_nothing(tables)
    if plain is tables:
        _refuse_untold(attention_of(layer))
    return plain


def _refuse_untold(attention: Any) -> None:
    """Refuse an attention with RoPE whose arguments do not tell it."""
    code = inspect.getsource(type(attention).forward)
    if any(word in code for word in ("rotary", "rope", "freqs")):
        raise UnsupportedError(
            f"foveate cannot read the keys of {type(attention).__name__} before RoPE: its arguments hold no tables. "
            "Use a method that reads no keys."
        )


def _turning_nothing(argument: Any) -> Any:
    """RoPE's tables, a pair (cos, sin) or complex numbers, as of position 0; anything else as it is."""
    if isinstance(argument, Tensor) and argument.is_complex():
        return torch.ones_like(argument)
    if isinstance(argument, tuple | list) and len(argument) == 2:
        cos, sin = argument
        if isinstance(cos, Tensor) and isinstance(sin, Tensor) and cos.is_floating_point() and cos.shape == sin.shape:
            return torch.ones_like(cos), torch.zeros_like(sin)
    return argument


# -- decoder layers ------------------------------------------------------------------------------------------------


def attention_of(layer: nn.Module) -> Any:
    """The module of a decoder layer that attends; None where none does, or several do."""
    usual = getattr(layer, "self_attn", None)
    if usual is not None:
        return usual
    attending = [module for module in layer.modules() if kind_of(module) in ("attention", "hybrid")]
    if len(attending) != 1:
        return None
    return attending[0]


@contextmanager
def tapped_layer(layer: Any, see: AttentionHook) -> Iterator[None]:
    """Call `see(queries, keys, scaling, values)` with what a decoder layer's attention is about to attend with.

    Raises:
        UnsupportedError: If probabilities depend on more than that.
    """
    attention = attention_of(layer)
    # A sink, as gpt-oss has, takes a share of every row that queries and keys do not tell.
    if attention is None or hasattr(attention, "sinks"):
        raise unreadable(attention or layer)
    with Patcher() as patches:
        tap(patches, attention, see)
        yield


PICKED = "prev_topk_indices"
"""What a layer is handed that picks keys by the index of a layer before it."""


def takes_index(layer: nn.Module) -> bool:
    """Whether a decoder layer is handed what a layer before it has picked by its index."""
    return PICKED in inspect.signature(type(layer).forward).parameters


def every_slot(rows: int, slots: int, hidden: Tensor) -> Tensor:
    """What rows pick that pick all slots, (samples, rows, slots) int32."""
    every = torch.arange(slots, dtype=torch.int32, device=hidden.device)
    return every.expand(len(hidden), rows, -1)


class _Enough(Exception):
    """Queries and keys are there; the rest of the attention need not run."""


def queries_and_keys_of(layer: Any, hidden: Any, queries: Tensor, given: Mapping[str, Any]) -> Tapped:
    """`Family.queries_and_keys` as the layer itself makes them: it may norm, or leave RoPE out, in ways of its own.

    Args:
        layer: The decoder layer; its own forward runs up to where it attends.
        hidden: Its input, as it takes it.
        queries: Rows whose queries are wanted, (samples, …) int64.
        given: What else it gets, by name; neither a mask nor a cache.
    """
    heads = list[Tapped]()
    places = queries[:, None, :, None]  # (samples, 1, …, 1): the same for all heads and numbers

    def note(query: Tensor, key: Tensor, scaling: float, _: Tensor) -> None:
        asking = take_along(query, places, dim=2)
        heads.append(Tapped(asking, key, scaling))
        raise _Enough

    mask = None
    if takes_index(layer) or any(map(keeps_index, layer.modules())):  # whose scores are masked, and which keep all
        rows = hidden.shape[1]
        mask = hidden.new_ones(len(hidden), 1, rows, rows, dtype=torch.bool)
        if takes_index(layer):
            given = {**given, PICKED: every_slot(rows, rows, hidden)}
    with suppress(_Enough), tapped_layer(layer, note):
        type(layer).forward(layer, hidden, attention_mask=mask, **given)
    if not heads:
        raise unreadable(attention_of(layer))
    return heads[0]


def unreadable(attention: Any) -> UnsupportedError:
    """The refusal to read an attention whose queries and keys are made, or used, in an unknown way."""
    return UnsupportedError(
        f"foveate cannot read the attention of {type(attention).__name__}: the way it attends is not known. "
        "Override queries_and_keys in the family, or use a method that reads no attention (V2Drop)."
    )
