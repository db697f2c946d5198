"""The one patcher: puts something in the place of a method, an attribute or a hook of one object, and takes it back."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from torch import nn

__all__ = ["Patcher"]


TABLES = (
    ("_forward_pre_hooks", ("_forward_pre_hooks_with_kwargs",)),
    ("_forward_hooks", ("_forward_hooks_with_kwargs", "_forward_hooks_always_called")),
)
"""Where torch keeps a module's hooks, and what it marks some of them with, by the same keys."""


class Undoable(Protocol):
    """A change to somebody else's object."""

    def undo(self) -> None:
        """Take it back. May be called before the change was made, and again after."""
        ...


class Patcher:
    """Changes to objects of others, taken back in the opposite order.

        with Patcher() as patches:
            patches.wrap(layer, "forward", around)

    Each change is written down before it is made, and undoing one may be repeated. So an interrupt can come at any
    point: `restore` afterwards finds everything that was changed.
    """

    def __init__(self) -> None:
        self._changes: list[Undoable] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.restore()
        finally:
            self.restore()  # what is left where an interrupt ended the first

    def wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        """Let `around(original, *args, **kwargs)` run in the place of a method, on this one object."""
        change = _Wrapped(owner, name, getattr(owner, name), owned=name in vars(owner))
        self._changes.append(change)
        setattr(owner, name, change.around(around))

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
            elif isinstance(change, _Wrapped) and vars(change.owner).get(change.name) in (None, change.original):
                return f"{type(change.owner).__name__}.{change.name}"
        return None

    def restore(self) -> None:
        """Take all changes back; calling it again does nothing."""
        while self._changes:
            self._changes[-1].undo()
            self._changes.pop()


@dataclass(eq=False)
class _Wrapped:
    """A method that something else runs around."""

    owner: Any
    name: str
    original: Callable[..., Any]
    owned: bool
    active: bool = True
    wrapper: Callable[..., Any] | None = None

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """What to put in the method's place."""

        @functools.wraps(self.original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.active:
                return call(self.original, *args, **kwargs)
            # Taken back, but somebody else's wrapper, put around this one since, goes on calling it.
            return self.original(*args, **kwargs)

        self.wrapper = wrapper
        return wrapper

    def undo(self) -> None:
        self.active = False
        # accelerate and others keep what they wrap under another name.
        names = [name for name, value in vars(self.owner).items() if value is self.wrapper and value is not None]
        for name in names:
            if name == self.name and not self.owned:
                delattr(self.owner, name)
            else:
                setattr(self.owner, name, self.original)
        # The wrapper knows this object: in a circle, what it holds would live until garbage is collected.
        self.wrapper = None


@dataclass(eq=False)
class _Put:
    """An attribute with another value."""

    owner: Any
    name: str
    original: Any
    value: Any
    owned: bool

    def undo(self) -> None:
        if vars(self.owner).get(self.name) is not self.value:
            return
        if self.owned:
            setattr(self.owner, self.name, self.original)
        else:
            delattr(self.owner, self.name)


@dataclass(eq=False)
class _Hooked:
    """A hook of a module. Torch may not have come to hand out its handle, so it is looked for where torch keeps it."""

    module: nn.Module
    call: Callable[..., Any]

    def undo(self) -> None:
        for hooks, marks in TABLES:
            registered = getattr(self.module, hooks)
            keys = [key for key, call in registered.items() if call is self.call]
            for key in keys:
                for mark in marks:
                    getattr(self.module, mark).pop(key, None)
                del registered[key]
