"""Attach: who holds a model. A model is in one context at a time."""

import threading
import weakref
from typing import Any, Literal

from torch import nn

from foveate.contract.method import Method
from foveate.core.patching import Patcher
from foveate.engine import guards
from foveate.engine.program import Program
from foveate.engine.trace import Trace
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.registry import family_for

holders: "weakref.WeakKeyDictionary[nn.Module, Hold]" = weakref.WeakKeyDictionary()
"""Who holds each core. Entries come by `setdefault` alone, which no thread can interrupt: the first one wins."""
joining: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()
"""An extension that every context of a core has now, besides those that its method needs."""


class Hold:
    """A claim on a model, from before its first hook is put on until the last is gone. A model has at most one.

    Args:
        family: The model's family.
        door: How it was opened: "drop", "apply", or "ask" for a call of a `VLM`.
        program: Where the method's stages run.

    Attributes:
        method: The method; None: the model is kept as it is.
        patches: What is put on the model; taken off when the context closes.
        trace: The trace, extended by every prefill.
        thread: The thread that opened it.
    """

    method: Method | None = None

    def __init__(self, family: Family, door: Literal["drop", "apply", "ask"], program: Program) -> None:
        self.door, self.thread = door, threading.current_thread()
        self.family, self.program = family, program
        self.patches, self.trace = Patcher(), Trace()
        self._core = family.core

    @property
    def is_elsewhere(self) -> bool:
        """Whether another thread opened it, and may close it."""
        return self.thread is not threading.current_thread() and self.thread.is_alive()

    def joined(self) -> list[Any]:
        """Return the extensions that every context of the model has now."""
        extension = joining.get(self._core)
        return [] if extension is None else [extension]

    def claim(self) -> None:
        """Claim the model.

        Raises:
            SessionError: If the model is claimed already.
        """
        holder = holders.setdefault(self._core, self)
        if holder is not self:
            guards.refuse_second(holder.method, holder.door, holder.is_elsewhere, self.family.model)

    def release(self) -> None:
        """End the claim. Calling it again does nothing."""
        if holders.get(self._core) is self:
            del holders[self._core]


def refuse_open(model: nn.Module, family: Family | None = None) -> None:
    """Refuse a model that is inside a context or has no weights.

    Raises:
        SessionError: If it is inside a context.
        UnsupportedError: If it has no weights, or no family supports it.
    """
    core = (family or family_for(model)).core  # `model` may be a pipeline
    weight = next(core.parameters(), None)
    is_meta = weight is not None and weight.device.type == "meta"
    # accelerate's hooks load weights when they are needed.
    if is_meta and not any(hasattr(module, "_hf_hook") for module in core.modules()):
        raise UnsupportedError(
            f"{type(core).__name__} was made without its weights, so it cannot answer. Only the tokens and costs of "
            "its prompts can be counted. Load it with its weights: fv.load(name)."
        )
    holder = holders.get(core)
    if holder is not None:
        guards.refuse_second(holder.method, holder.door, holder.is_elsewhere, model)
