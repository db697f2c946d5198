"""Each layer, at once: a module and those inside it, and the version of all that their forwards read."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foveate._transformers import adapters_of
from foveate.core.tensors import PLAIN_VALUES
from foveate.engine.streams import Original
from foveate.families.tap import is_tapped

KNOWN = ("torch", "transformers", "peft")
"""Packages whose modules compute from their weights, plain attributes and arguments alone."""
OF_TORCH = {*vars(nn.Module()), "forward", "config", "_active_adapter"} - {"training"}
"""Attributes that are looked at elsewhere."""
NUMBERS = itertools.count()
Snapshot = tuple[list[Any], list[Any]]
"""Objects that a module's forward may read, kept alive so that no other gets their identity; and values: addresses of
weights, and adapters."""


class Modules:
    """A module and those inside it.

    Args:
        outer: The module.
        before: What was inside it before. Its recordings are gone, so its last version is used again.

    Attributes:
        version: A number for what forwards branch on: plain attributes, also of configs, and PEFT's adapters. Equal for
            equal values; no other module has it.
    """

    def __init__(self, outer: nn.Module, before: "Modules | None" = None) -> None:
        modules = list(outer.modules())
        self._vars = [vars(module) for module in modules]
        self._kinds: list[Any] = list(dict.fromkeys(map(type, modules)))
        self._layers = [module for module in modules if adapters_of([module])]
        self._experts: list[Any] = [getattr(one, "config", None) for one in modules if hasattr(one, "_apply_gate")]
        configs = {id(config): vars(config) for config in map(_config, self._vars) if config is not None}
        self._attributes = [*self._vars, *configs.values()]
        self._weights = [table for one in modules for table in (one._parameters, one._buffers, one._modules)]
        self._hooks = [table for module in modules[1:] for table in (module._forward_pre_hooks, module._forward_hooks)]
        self._objects, plain = self._read()
        self._tensors = [value for value in self._objects if isinstance(value, Tensor)]
        self._pointers = self._places()
        self.version: int = next(NUMBERS) if before is None else before.version
        self._versions = {(plain, tuple(adapters_of(self._layers))): self.version}

    def look(self) -> Snapshot:
        """List all that forwards may read."""
        tables = (*self._weights, *self._hooks, *self._attributes)
        objects = [*itertools.chain.from_iterable(map(dict.values, tables)), *[kind.forward for kind in self._kinds]]
        return objects, [*self._places(), *adapters_of(self._layers)]

    def read(self) -> bool:
        """Set `version`. Returns False if modules or weights are others, or the weights are at other addresses."""
        objects, plain = self._read()
        if not _are_same(objects, self._objects) or self._places() != self._pointers:
            return False
        values = plain, tuple(adapters_of(self._layers))
        self.version = self._versions.setdefault(values, next(NUMBERS))
        return True

    def obstacle(self, wrappers: Sequence[Original], hooks: int) -> str | None:
        """Return why their forward cannot be replayed now; None if it can.

        Args:
            wrappers: The forwards that the session has installed inside.
            hooks: How many hooks it has installed inside.
        """
        for kind in self._kinds:
            for origin in (kind, kind.forward):
                if str(getattr(origin, "__module__", "")).partition(".")[0] not in KNOWN:
                    return f"{kind.__name__} is not a module of {', '.join(KNOWN)}, so it may do more than run kernels"
        around = [attributes["forward"] for attributes in self._vars[1:] if "forward" in attributes]
        hooked = [hook for table in self._hooks if table for hook in table.values()]
        # Ignore transformers' own hooks, which collect hidden states on request.
        others = [hook for hook in hooked if not str(getattr(hook, "__module__", "")).startswith("transformers.")]
        if not _are_same(around, wrappers) or len(others) != hooks:
            return "other hooks or wrappers are on modules inside"
        if any(is_tapped(attributes.get("config")) for attributes in self._vars):
            return "a stage reads attention in it"
        if any(getattr(config, "_experts_implementation", None) == "eager" for config in self._experts):
            return "eager experts read on the host which of them run; set_experts_implementation has others"
        if len({tensor.device for tensor in self._tensors}) > 1:
            return "its weights are on several devices"
        return None

    def _read(self) -> tuple[list[Any], tuple[Any, ...]]:
        """List the objects that forwards read, such as weights, with the names of attributes; and plain attributes."""
        objects = [value for table in self._weights for value in table.values()]
        objects += [*map(_config, self._vars), *[kind.forward for kind in self._kinds]]
        attributes = [pair for table in self._attributes for pair in table.items() if pair[0] not in OF_TORCH]
        objects += [name if isinstance(value, PLAIN_VALUES) else value for name, value in attributes]
        return objects, tuple([value for _, value in attributes if isinstance(value, PLAIN_VALUES)])

    def _places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self._tensors]


def are_same(one: Snapshot, other: Snapshot) -> bool:
    """Return whether nothing was assigned between two looks."""
    return one[1] == other[1] and _are_same(one[0], other[0])


def _are_same(ones: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(ones) == len(others) and all(map(operator.is_, ones, others))


def _config(attributes: Mapping[str, Any]) -> Any:
    """Return a module's own config, from its attributes."""
    config: Any = attributes.get("config")
    while is_tapped(config):
        config = config._real
    return config
