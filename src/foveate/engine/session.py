"""Attach: a method goes onto a model here, and comes off again."""

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

from torch import nn

from foveate.contract import naming
from foveate.contract.method import Method
from foveate.core.patching import Patcher
from foveate.engine import guards
from foveate.engine.hooks import ModelHooks
from foveate.engine.program import Program
from foveate.engine.trace import Trace
from foveate.errors import SessionError, SettingError
from foveate.families.base import Family
from foveate.registry import family_for, inside

__all__ = ["apply", "drop", "drop_or_not", "refuse_open", "remove"]

LATEST = 100
"""Prefills that the trace of `apply` holds."""

_sessions: "weakref.WeakKeyDictionary[nn.Module, Session]" = weakref.WeakKeyDictionary()


@contextmanager
def drop(
    model: nn.Module,
    method: Method | str,
    family: Literal["generic"] | None = None,
    *,
    retention: float | None = None,
    tokens: float | None = None,
) -> Iterator[Trace]:
    """Drop vision tokens while the context is open.

        with foveate.drop(model, foveate.V2Drop()) as trace:
            ids = model.generate(**inputs)
        with foveate.drop(model, "visiondrop+v2drop", retention=0.3) as trace: ...

    The model is restored when the context exits, even after an exception or an interrupt. A model can be in one
    context at a time. Calls of `generate` from several threads wait for one another.

    Args:
        model: An unmodified vision-language model of transformers, also inside PEFT's wrapper, torch.compile's or a
            pipeline.
        method: A method with its settings, or its name (`foveate.contract.naming`): "v2drop", a preset, a chain.
        family: "generic" for a model without a family, if its decoder is of the usual kind; it warns.
        retention: A budget: the mean share of the vision tokens that a decoder layer processes. The method (in a chain,
            the last one that takes a budget) solves its schedule for every image.
        tokens: The same as a number of tokens.

    Yields:
        The trace, which every prefill inside the context fills.

    Raises:
        SessionError: If the model is inside such a context already.
        SettingError: If the method's cuts do not fit the decoder's depth, or the method cannot meet the budget.
        UnknownNameError: If there is no method of that name.
        UnsupportedError: If no family serves the model, or the model lacks a signal that the method reads.
    """
    session = _session(model, method, family, retention, tokens)
    try:
        try:
            session.attach()
            yield session.trace
        finally:
            session.detach()
    finally:
        session.detach()  # an interrupt may have ended the first detach halfway


def apply(
    model: nn.Module,
    method: Method | str,
    family: Literal["generic"] | None = None,
    *,
    retention: float | None = None,
    tokens: float | None = None,
) -> Trace:
    """Drop vision tokens from now until `foveate.remove(model)`; see `drop`.

    The trace's `history` holds the latest 100 prefills, so that a server may go on for weeks.
    """
    session = _session(model, method, family, retention, tokens)
    session.trace.most = LATEST
    try:
        session.attach()
    except BaseException:
        session.detach()
        raise
    return session.trace


def remove(model: nn.Module) -> None:
    """Take off what `foveate.apply` put on.

    Raises:
        SessionError: If no method is on.
    """
    sessions = (_sessions.get(module) for module in inside(model).modules())
    session = next(filter(None, sessions), None)
    if session is None:
        raise SessionError(
            f"Nothing to remove: no method is applied to this {type(model).__name__}. Call foveate.apply first."
        )
    try:
        session.detach()
    finally:
        session.detach()


def drop_or_not(model: nn.Module, method: Method | None) -> AbstractContextManager[Trace]:
    """`drop`; with None the untouched model, and an empty trace. Neither starts inside a context.

    Raises:
        SessionError: If the model is inside one already, also one that another thread holds.
    """
    if method is not None:
        return drop(model, method)
    refuse_open(model)
    return nullcontext(Trace())


def refuse_open(model: nn.Module) -> None:
    """Refuse a model that is inside a context.

    Raises:
        SessionError: If it is.
    """
    running = _sessions.get(family_for(model).core)
    guards.refuse_second_session(model, None if running is None else running.method)


def _session(
    model: nn.Module,
    method: Method | str,
    kind: Literal["generic"] | None,
    retention: float | None,
    tokens: float | None,
) -> "Session":
    """The session that will be attached; nothing is put on the model yet."""
    chosen = _chosen(method, retention, tokens)
    family = family_for(model, kind)
    running = _sessions.get(family.core)
    guards.refuse_second_session(model, None if running is None else running.method)
    return Session(family, chosen)


def _chosen(method: Method | str, retention: float | None, tokens: float | None) -> Method:
    """A method by itself or by its name, with the budget given from outside."""
    if isinstance(method, str):
        method = naming.parse(method)
    if not isinstance(method, Method):
        raise SettingError(
            f"The second argument must be a method, such as foveate.V2Drop(), or its name; got {method!r}."
        )
    return naming.with_given(method, tokens, retention)


class Session:
    """A method on a model, and how to undo what was put on.

    Attributes:
        method: The method.
        trace: Filled by every prefill.
    """

    def __init__(self, family: Family, method: Method) -> None:
        self.method = method
        self._core = family.core
        self._hooks = ModelHooks(family, Program(method, family))
        self._patches = Patcher()
        self.trace = self._hooks.trace

    def attach(self) -> None:
        """Put everything on. Where that fails or is interrupted, `detach` takes off what is on by then."""
        _sessions[self._core] = self
        self._hooks.put_on(self._patches)

    def detach(self) -> None:
        """Take everything off; calling it again does nothing."""
        self._patches.restore()
        if _sessions.get(self._core) is self:
            del _sessions[self._core]
