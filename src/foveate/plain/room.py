"""Packages that share their name with a public function: `foveate.methods` is a package, `foveate.methods()` a call.

When a submodule is imported, Python replaces the function by the package. The package is therefore made callable, so
that both spellings always work.
"""

import sys
from types import ModuleType
from typing import Any


def make_callable(room: str, function: str) -> None:
    """Make the package `room` callable: a call runs the function at `function` ("package.module:name")."""
    home, _, name = function.partition(":")

    class CalledPackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            __import__(home)
            return getattr(sys.modules[home], name)(*args, **kwargs)

    sys.modules[room].__class__ = CalledPackage
