"""What a prompt costs with and without dropping: FLOPs and KV-cache bytes from a config, without weights."""

import sys
from types import ModuleType

from foveate.cost._cost import Cost, cost

__all__ = ["Cost", "cost"]


class _Callable(ModuleType):
    """Importing this package binds it as `foveate.cost`, where users expect the function: it answers as one."""

    __call__ = staticmethod(cost)


sys.modules[__name__].__class__ = _Callable
