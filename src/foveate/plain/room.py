"""Rooms that share their name with a public function: `foveate.methods` is a package and `foveate.methods()` a call.

Importing a submodule makes Python put the package where the function was. So the package itself can be called,
and both spellings mean the same whatever was imported before.
"""

import sys
from types import ModuleType
from typing import Any


def make_callable(room: str, function: str) -> None:
    """Let the package `room` answer a call with the function at `function` ("package.module:name")."""
    home, _, name = function.partition(":")

    class CalledPackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            __import__(home)
            return getattr(sys.modules[home], name)(*args, **kwargs)

    sys.modules[room].__class__ = CalledPackage
