"""Attach: the doors of the engine. `drop` and `apply` put a method on a model, `remove` takes it off."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from foveate import naming
from foveate.contract.method import BUDGET, Method
from foveate.core.fields import check_call
from foveate.engine import guards
from foveate.engine.extension import Extension
from foveate.engine.hold import Hold, holders, refuse_open
from foveate.engine.session import LATEST, UNTOUCHED, Session, program_of
from foveate.engine.trace import Trace
from foveate.errors import SessionError
from foveate.plain.upstream import warn_caller
from foveate.registry import family_for, inside

WHOLE = ("retention", 1.0)  # the budget that keeps everything
NOTHING_RAN = (
    "Nothing was dropped: the model encoded no picture and prefilled no prompt while the method was on it. Run the "
    "whole prompt inside the context, with this model object and in this process."
)


@contextmanager
@check_call("drop")
def drop(
    model: nn.Module,
    method: Method | str | None,
    *,
    retention: float | None = None,
    tokens: float | None = None,
    resources: Mapping[str, Any] | None = None,
    cuda_graphs: bool = False,
    extensions: Sequence[Extension] = (),
) -> Iterator[Trace]:
    """Drop vision tokens while the context is open.

        with foveate.drop(model, foveate.V2Drop()) as trace:
            ids = model.generate(**inputs)
        with foveate.drop(model, "visiondrop+v2drop", retention=0.3) as trace: ...

    The model is restored when the context exits, even after an exception or an interrupt.

    A model can be in one context at a time, and it drops for every thread. In other threads, while the context is open:

    - Dropped too, although they did not ask: `model(**inputs)` and `model.generate` without a context.
    - Wait for each other, in the order in which they came: calls of `generate`, and of the model. Exiting the context
      waits for the forward that is running, not for a `generate`.
    - Refused at once: another `drop` or `apply`, `remove` of this context, `vlm.ask` and `vlm.look`; a call of the
      model beside a running `generate`; a call that the context did not outlast.

    To drop in several threads, call `apply` once, or `vlm.ask` with a method for each question: its calls wait.

    Args:
        model: An unmodified vision-language model of transformers. It may be wrapped by PEFT or torch.compile, or be
            inside a pipeline.
        method: A method with its settings, or its name (`foveate.naming`): "v2drop", a preset, a chain. A name
            alone keeps a third. With `cuda_graphs` it may be None: nothing is dropped.
        retention: A budget: the mean share of the vision tokens that a decoder layer processes. The method (in a chain,
            the last one that takes a budget) computes for every image what stays.
        tokens: That budget as a number of tokens.
        resources: Inputs of the method that no model has, by name, such as CDPruner's "clip". See the method's page.
        cuda_graphs: Run the vision tower, the prefill and each decoding step as a CUDA graph. The second call with a
            layout records its graph and later ones replay it; `trace.graphs` counts both. Experimental.
        extensions: What else is to be done in every forward; see "Write an extension" in the documentation.

    Yields:
        The trace, which every prefill inside the context extends. Its `history` keeps all of them, but only the latest
        100 from the first one that runs with gradients enabled.

    Raises:
        BudgetError: If no image of the model can meet the budget. If images differ in size, raised by the first image
            that cannot.
        InputError: If `method` names a file that cannot be read.
        MethodError: If a method of your own fails; on exit, if what it says of itself was not so.
        SessionError: If the model is inside such a context already, also in another thread.
        SettingError: If the method's cuts do not fit the decoder's depth, the method cannot meet the budget, there is
            none, `resources` are not those that it reads, the model's device has no CUDA graphs, or these are asked
            for together with `extensions`.
        UnknownNameError: If there is no method of that name.
        UnsupportedError: If no family supports the model, the model lacks a signal that the method reads, or
            it has no weights.

    Warns:
        UserWarning: On exit, if the method is weak at as few tokens as an image was left, if a budget left all, or if
            the model encoded no picture and ran no prompt inside, so that nothing can have been dropped.
    """
    session = Session(model, method, retention, tokens, resources, cuda_graphs, extensions=extensions)
    yield from open_session(session, warns=True)


def open_session(session: Session, warns: bool) -> Iterator[Trace]:
    """Yield the trace of a session while it is attached. Then, if `warns`, warn of what `drop` warns of."""
    try:
        try:
            session.attach()
            yield session.trace
        finally:
            session.detach()
    finally:
        session.detach(waits=False)  # an interrupt may have stopped the first detach halfway
    session.program.refuse_doubts()
    if not warns:
        return
    if session.idle:
        warn_caller(NOTHING_RAN)
    if session.trace.history:
        method, trace = session.method, session.trace
        caution = method.caution(min(trace.history[0].retention)) or _unspent_budget(method, trace)
        if caution is not None:
            warn_caller(caution)


def _unspent_budget(method: Method, trace: Trace) -> str | None:
    """Return why a budget dropped no token in any prefill; None if one did, or if everything was to stay."""
    seen = [prefill for prefill in trace.history if any(prefill.vision_tokens)]
    budgets = [member._not_none(BUDGET) for member in naming.members_of(method)]
    asked = [f"{name}={value:.4g}" for budget in budgets for name, value in budget.items() if (name, value) != WHOLE]
    if not seen or not asked or any(min(prefill.retention) < 1 for prefill in seen):
        return None
    most = max(max(prefill.vision_tokens) for prefill in seen)
    return (
        f"{naming.name_of(method)} dropped no token: it was to leave {asked[0]}, and prompts have up to {most} "
        "vision tokens. Ask for fewer, or take another method: those made for videos may keep pictures whole."
    )


@check_call("apply")
def apply(
    model: nn.Module,
    method: Method | str,
    *,
    retention: float | None = None,
    tokens: float | None = None,
    resources: Mapping[str, Any] | None = None,
    extensions: Sequence[Extension] = (),
) -> Trace:
    """Drop vision tokens from now until `foveate.remove(model)`; see `drop`.

    The trace's `history` keeps only the latest 100 prefills, so a server can run for weeks. `remove` warns if the model
    ran nothing in between, as `drop` does.
    """
    session = Session(model, method, retention, tokens, resources, door="apply", extensions=extensions)
    session.trace.most = LATEST
    try:
        session.attach()
    except BaseException:
        session.detach()
        raise
    return session.trace


def remove(model: nn.Module) -> None:
    """Remove the method that `foveate.apply` put on the model. A forward that is running ends first.

    Raises:
        SessionError: If no method is applied, or what drops is another thread's `drop` or `vlm.ask`.

    Warns:
        UserWarning: If the model ran nothing since, as `drop` does.
    """
    holds = (holders.get(module) for module in getattr(inside(model), "modules", tuple)())
    session = next(filter(None, holds), None)
    if not isinstance(session, Session):
        raise SessionError(
            f"Nothing to remove: no method is applied to this {type(model).__name__}. Call foveate.apply first."
        )
    if session.door != "apply" and session.is_elsewhere:
        guards.refuse_removal(session.method)
    try:
        session.detach()
    finally:
        session.detach(waits=False)  # as in `open_session`
    session.program.refuse_doubts()
    if session.idle:
        warn_caller(NOTHING_RAN)


@contextmanager
def drop_or_not(model: nn.Module, method: Method | None, cuda_graphs: bool = False) -> Iterator[Trace]:
    """Open `drop` without warnings. With None, keep others from dropping, and yield an empty trace.

    Raises:
        SessionError: If the model is inside a context already, even one that another thread holds.
    """
    if method is not None or cuda_graphs:
        yield from open_session(Session(model, method, cuda_graphs=cuda_graphs, door="ask"), warns=False)
        return
    family = family_for(model)
    refuse_open(model, family)
    hold = Hold(family, "ask", program_of(UNTOUCHED, family))
    try:
        hold.claim()
        with hold.patches:
            for extension in hold.joined():
                extension.attach(hold)
            yield hold.trace
    finally:
        hold.release()
