"""The patcher: replaces methods and attributes of single objects, adds hooks, and takes everything back."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from torch import nn

TABLES = (
    ("_forward_pre_hooks", ("_forward_pre_hooks_with_kwargs",)),
    ("_forward_hooks", ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")),
)
"""The tables in which torch keeps a module's hooks, and those in which it marks some of them by the same keys."""


class Patcher:
    """Changes objects that belong to others, and undoes the changes in reverse order.

        with Patcher() as patches:
            patches.wrap(layer, "forward", around)

    Each change is recorded before it is made, and undoing one can be repeated. So an interrupt may come at any point: a
    later `restore` finds everything that was changed.
    """

    def __init__(self) -> None:
        self._changes: list[_Put | _Hooked] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.restore()
        finally:
            self.restore()  # undo the rest if an interrupt ended the first call

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        """Run `around(original, *args, **kwargs)` instead of a method, on this one object.

        Returns:
            The wrapper that replaces the method.
        """
        original = getattr(owner, name)
        change = _Put(owner, name, original, GONE, owned=name in vars(owner), wraps=True)
        self._changes.append(change)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if change.active:
                return around(original, *args, **kwargs)
            # This wrapper was taken back, but a wrapper that others put around it still calls it.
            return original(*args, **kwargs)

        change.value = wrapper
        setattr(owner, name, wrapper)
        return wrapper

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of this one object to another value."""
        change = _Put(owner, name, getattr(owner, name), value, owned=name in vars(owner))
        self._changes.append(change)
        setattr(owner, name, value)

    def hook(
        self, module: nn.Module, when: Literal["before", "after"], call: Callable[..., Any], **options: Any
    ) -> None:
        """Register a forward hook, called before or after the module's forward. `options` are torch's."""
        self._changes.append(_Hooked(module, call))
        if when == "before":
            module.register_forward_pre_hook(call, **options)
        else:
            module.register_forward_hook(call, **options)

    def before(self, owner: Any, name: str) -> Any:
        """Return an object's own attribute as it was before anything was changed here; None if it had none."""
        for change in self._changes:
            if isinstance(change, _Put) and change.owner is owner and change.name == name:
                return change.original if change.owned else None
        return vars(owner).get(name)

    def lost(self) -> str | None:
        """Name a change that others have removed in the meantime, or return None.

        A wrapper that others have wrapped counts as present.
        """
        for change in self._changes:
            if isinstance(change, _Hooked):
                module, hooks = change.module, (change.module._forward_pre_hooks, change.module._forward_hooks)
                if change.call not in hooks[0].values() and change.call not in hooks[1].values():
                    return f"a hook of {type(module).__name__}"
            elif change.wraps and vars(change.owner).get(change.name) in (None, change.original):
                return f"{type(change.owner).__name__}.{change.name}"
        return None

    def restore(self) -> None:
        """Undo all changes. Calling it again does nothing."""
        changes = self._changes
        while changes:
            change = changes[-1]
            if isinstance(change, _Hooked):
                for hooks, marks in TABLES:
                    registered = getattr(change.module, hooks)
                    for key in [key for key, call in registered.items() if call is change.call]:
                        for mark in marks:
                            getattr(change.module, mark).pop(key, None)
                        del registered[key]
            else:
                change.active = False
                # accelerate and others keep the wrapper that they wrap under another attribute name.
                put = [name for name, value in vars(change.owner).items() if value is change.value]
                for name in put if change.wraps else {change.name}.intersection(put):
                    if name == change.name and not change.owned:
                        delattr(change.owner, name)
                    else:
                        setattr(change.owner, name, change.original)
                change.value = GONE
            changes.pop()


GONE = object()


@dataclass(eq=False)
class _Put:
    """A changed attribute of an object.

    Attributes:
        owner, name: The object, and its attribute.
        original: The value before the change.
        value: The value now. A wrapper refers to this object, which is a reference cycle. So it is released when the
            change is undone, instead of living until garbage collection.
        owned: True if the attribute was the object's own, not its class's.
        wraps: True if the value is a wrapper around the original method.
        active: True until the change is undone.
    """

    owner: Any
    name: str
    original: Any
    value: Any
    owned: bool
    wraps: bool = False
    active: bool = True


@dataclass(eq=False)
class _Hooked:
    """A hook of a module. It is found in torch's tables: an interrupt may come before torch returns its handle."""

    module: nn.Module
    call: Callable[..., Any]
