"""The one patcher: puts something in the place of a method, an attribute or a hook of one object, and takes it back."""

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
"""Where torch keeps a module's hooks, and what it marks some of them with, by the same keys."""


class Patcher:
    """Changes to objects of others, taken back in the opposite order.

        with Patcher() as patches:
            patches.wrap(layer, "forward", around)

    Each change is written down before it is made, and undoing one may be repeated. So an interrupt can come at any
    point: `restore` afterwards finds everything that was changed.
    """

    def __init__(self) -> None:
        self._changes: list[_Put | _Hooked] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.restore()
        finally:
            self.restore()  # what is left where an interrupt ended the first

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        """Let `around(original, *args, **kwargs)` run in the place of a method, on this one object.

        Returns:
            What stands in its place now.
        """
        original = getattr(owner, name)
        change = _Put(owner, name, original, GONE, owned=name in vars(owner), wraps=True)
        self._changes.append(change)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if change.active:
                return around(original, *args, **kwargs)
            # Taken back, but somebody else's wrapper, put around this one since, goes on calling it.
            return original(*args, **kwargs)

        change.value = wrapper
        setattr(owner, name, wrapper)
        return wrapper

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Give an attribute of this one object another value."""
        change = _Put(owner, name, getattr(owner, name), value, owned=name in vars(owner))
        self._changes.append(change)
        setattr(owner, name, value)

    def hook(
        self, module: nn.Module, when: Literal["before", "after"], call: Callable[..., Any], **options: Any
    ) -> None:
        """Register a forward hook, to be called before or after the module's forward; `options` are torch's."""
        self._changes.append(_Hooked(module, call))
        if when == "before":
            module.register_forward_pre_hook(call, **options)
        else:
            module.register_forward_hook(call, **options)

    def lost(self) -> str | None:
        """What somebody else has taken off meanwhile, or None. A wrapper that others have put around it is there."""
        for change in self._changes:
            if isinstance(change, _Hooked):
                module, hooks = change.module, (change.module._forward_pre_hooks, change.module._forward_hooks)
                if change.call not in hooks[0].values() and change.call not in hooks[1].values():
                    return f"a hook of {type(module).__name__}"
            elif change.wraps and vars(change.owner).get(change.name) in (None, change.original):
                return f"{type(change.owner).__name__}.{change.name}"
        return None

    def restore(self) -> None:
        """Take all changes back; calling it again does nothing."""
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
                # accelerate and others keep what they wrap under another name.
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
    """An attribute of an object with another value.

    Attributes:
        owner, name: The object, and its attribute.
        original: What was there.
        value: What is there now. A wrapper knows this object: in a circle, what it holds would live until garbage is
            collected, so it is let go of when it is taken back.
        owned: Whether it was the object's own, and not its class's.
        wraps: Whether the value is a method around the original.
        active: Whether it was not taken back yet.
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
    """A hook of a module. Torch may not have come to hand out its handle, so it is looked for where torch keeps it."""

    module: nn.Module
    call: Callable[..., Any]
