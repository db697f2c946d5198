"""Each layer, at once: a module and those inside it, as a recording found them."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from foveate._transformers import adapters_of
from foveate.core.tensors import PLAIN_VALUES
from foveate.engine.handed import Original
from foveate.families.tap import is_tapped

KNOWN = ("torch", "transformers", "peft")
"""Packages whose modules compute from their weights, plain attributes and arguments alone."""
OF_TORCH = {*vars(nn.Module()), "forward", "config"} - {"training"}
"""Attributes that are looked at elsewhere."""


class Modules:
    """A module and those inside it.

    Args:
        outer: The module.

    Attributes:
        state: A number for what forwards branch on: plain attributes, also of configs, and PEFT's adapters. Equal for
            equal values.
    """

    def __init__(self, outer: nn.Module) -> None:
        modules = list(outer.modules())
        self._tables = [table for one in modules for table in (one._parameters, one._buffers, one._modules)]
        self._vars = [vars(one) for one in modules]
        self._hooks = [table for one in modules[1:] for table in (one._forward_pre_hooks, one._forward_hooks)]
        self._kinds: list[Any] = list(dict.fromkeys(map(type, modules)))
        self._layers = [one for one in modules if adapters_of([one])]
        self._experts: list[Any] = [getattr(one, "config", None) for one in modules if hasattr(one, "_apply_gate")]
        self._configured = [one for one in self._vars if "config" in one]
        configs = {id(config): vars(config) for config in map(_config, self._configured)}
        attributes = [(one, name) for one in self._vars for name in one.keys() - OF_TORCH]
        attributes += [(config, name) for config in configs.values() for name in config]
        self._plain = [(one, name) for one, name in attributes if isinstance(one[name], PLAIN_VALUES)]
        self._others = [(one, name) for one, name in attributes if not isinstance(one[name], PLAIN_VALUES)]
        self._values = self._now()
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self._devices = {tensor.device for tensor in self._tensors}
        self._count = self._attributes()
        self._states: dict[Hashable, int] = {}
        self.state = 0
        self.look()

    def look(self) -> bool:
        """Set `state`. Returns False if modules or weights are others, or the weights are at other addresses."""
        if self._attributes() != self._count or list(map(id, self._now())) != list(map(id, self._values)):
            return False
        values = tuple([one.get(name) for one, name in self._plain]), tuple(adapters_of(self._layers))
        try:
            self.state = self._states.setdefault(values, len(self._states))
        except TypeError:  # an attribute is no longer plain
            return False
        return [tensor.data_ptr() for tensor in self._tensors] == self._pointers

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
        others = [one for one in hooked if not str(getattr(one, "__module__", "")).startswith("transformers.")]
        if list(map(id, around)) != list(map(id, wrappers)) or len(others) != hooks:
            return "other hooks or wrappers are on modules inside"
        if any(is_tapped(attributes["config"]) for attributes in self._configured):
            return "a stage reads attention in it"
        if any(getattr(config, "_experts_implementation", None) == "eager" for config in self._experts):
            return "eager experts read on the host which of them run; set_experts_implementation has others"
        if len(self._devices) > 1:
            return "its weights are on several devices"
        return None

    def _now(self) -> list[Any]:
        values = [value for table in self._tables for value in table.values()]
        values += [one.get(name) for one, name in self._others] + list(map(_config, self._configured))
        return values + [kind.forward for kind in self._kinds]

    def _attributes(self) -> int:
        """Count the attributes, since a forward may ask whether there is one."""
        return sum([len(one) - ("forward" in one) for one in self._vars])


def _config(attributes: Mapping[str, Any]) -> Any:
    """Return a module's own config, from its attributes."""
    config: Any = attributes.get("config")
    while is_tapped(config):
        config = config._real
    return config
