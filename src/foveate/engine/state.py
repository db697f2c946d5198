"""Encode: what the output of a module depends on besides its arguments: weights, attributes, hooks, adapters."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.tensors import PLAIN_VALUES

VALUES = 16
"""How many numbers of each weight are read. A write through `.data` or numpy leaves no other trace."""
PASSING = {"rope_deltas", "_output_capturing_hooks_installed"}
"""Attributes that a forward sets: for the decoding steps behind it, and to note that it has installed `COLLECTORS`."""
CONTAINERS = {dict, OrderedDict, list, tuple, set}
"""Kinds of attributes whose parts count."""
PLAIN = {*PLAIN_VALUES}
LIBRARIES = ("accelerate", "foveate", "peft", "torch", "transformers")
"""Packages whose hooks follow from how a model was loaded."""
COLLECTORS = "transformers.utils.output_capturing"
"""The module of the hooks that collect hidden states. transformers installs them when they are first asked for."""


@dataclass(frozen=True, slots=True)
class State:
    """What the output of a module depends on, at one moment. Equal states give equal outputs for equal arguments.

    Attributes:
        objects: Hooks, wrappers, configs and other objects, compared by identity.
        values: Plain attributes, and for each module and tensor its identity, address, dtype, device and version.
        numbers: `VALUES` numbers of each tensor, as bytes, (bytes,) uint8 on the CPU: a tensor for each device.
    """

    objects: list[Any]
    values: list[Any]
    numbers: list[Tensor] = field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State) or len(self.objects) != len(other.objects):
            return False
        same = all(map(is_, self.objects, other.objects)) and self.values == other.values
        return same and all(map(torch.equal, self.numbers, other.numbers))


def state_of(module: nn.Module, outside: Iterable[str] = ()) -> State:
    """Return the state of a module and those inside it. Waits once for each device that holds weights.

    It costs a few microseconds for each module and weight, and reads no whole weight: a change of a few numbers through
    `.data` may go unnoticed.

    Args:
        module: The module.
        outside: Attributes of the module itself that do not count.
    """
    tables = [vars(inner) for inner in module.modules()]
    for at, table in enumerate(tables):
        ignored = PASSING.union(outside if at == 0 else ())
        if not ignored.isdisjoint(table):
            tables[at] = {name: value for name, value in table.items() if name not in ignored}
    configs = [config for table in tables if (config := table.get("config")) is not None]
    tables += [getattr(config, "__dict__", {}) for config in dict(zip(map(id, configs), configs, strict=True)).values()]
    entries = list[Any](chain.from_iterable(map(dict.values, tables)))
    # In three passes, each a plain loop: an embedded model has 15,000 entries, most of them empty tables of hooks.
    inner = [entry for entry in entries if entry.__class__ in CONTAINERS and entry]
    entries = [entry for entry in entries if entry.__class__ not in CONTAINERS]
    for container in inner:
        entries += container.values() if isinstance(container, dict) else container
    values = [entry for entry in entries if entry.__class__ in PLAIN]
    others = [entry for entry in entries if entry.__class__ not in PLAIN]
    tensors = [*{id(entry): entry for entry in others if isinstance(entry, Tensor)}.values()]
    for kind in sorted({tensor.device.type for tensor in tensors}):
        if torch.amp.is_autocast_available(kind):  # not for meta, where offloaded weights are
            values += [torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)]
    modules = [id(entry) for entry in others if isinstance(entry, nn.Module)]  # ids, so that a replaced one is freed
    objects = [entry for entry in others if not isinstance(entry, Tensor | nn.Module)]
    objects = [entry for entry in objects if getattr(entry, "__module__", None) != COLLECTORS]
    dense = [tensor for tensor in tensors if tensor.layout is torch.strided]  # of others, identity and version count
    kept = [*map(id, tensors), *((tensor.data_ptr(), tensor.dtype, tensor.device) for tensor in dense)]
    versions = [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    return State(objects, [values, modules, kept, versions], _numbers(dense))


def own_hooks(module: nn.Module) -> list[str]:
    """Return the place and name of each hook that no library below put on a module or those inside it.

    A state compares hooks by identity. What such a hook reads from elsewhere, as from a closure, it cannot compare.
    """
    hooks = []
    for place, inner in module.named_modules():
        for hook in (*inner._forward_pre_hooks.values(), *inner._forward_hooks.values()):
            function = getattr(hook, "func", hook)  # of a partial
            of = getattr(function, "__module__", None) or type(function).__module__
            if of.partition(".")[0] not in LIBRARIES:
                hooks.append(f"{place}: {of}.{getattr(function, '__qualname__', type(function).__qualname__)}")
    return hooks


@torch.no_grad()
def _numbers(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Read `VALUES` numbers of each tensor, evenly spread over its memory."""
    parts = defaultdict[tuple[torch.device, torch.dtype], list[Tensor]](list)
    for tensor in chain.from_iterable(map(_plain_parts, tensors)):
        span = tensor.numel()
        if not span or tensor.is_meta:  # offloaded: its values come from a file when it runs
            continue
        if not tensor.is_contiguous():
            span = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
        # No multiple of a usual width, so that rows and columns vary: of (352, 128) every 2,711th, not every 2,816th.
        few = tensor.as_strided((min(VALUES, span),), (max(1, int(span / (VALUES + 0.618))),))
        parts[tensor.device, tensor.dtype].append(few)
    by_device = defaultdict[torch.device, list[Tensor]](list)
    for (device, _), same in parts.items():
        by_device[device].append(torch.cat(same).view(torch.uint8))
    return [torch.cat(kinds).cpu() for kinds in by_device.values()]


def _plain_parts(tensor: Tensor) -> Iterable[Tensor]:
    """Return the tensors in memory that a tensor consists of: itself, or of quantised weights their parts."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return (tensor,)
    names, _ = tensor.__tensor_flatten__()
    return chain.from_iterable(_plain_parts(getattr(tensor, name)) for name in names)
