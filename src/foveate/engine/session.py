"""Attaching a method to a model and taking it off again."""

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from foveate.engine.guards import refuse_pages
from foveate.engine.hooks import ModelHooks
from foveate.engine.program import Program
from foveate.engine.trace import Trace
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.methods import grammar
from foveate.methods.base import Method
from foveate.registry import family_for, inside

__all__ = ["apply", "drop", "remove"]

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

    The model is as it was before when the context ends, also by an exception. A model serves one context
    and one thread at a time.

    Args:
        model: An unmodified vision-language model of transformers, also inside PEFT's wrapper, torch.compile's or a
            pipeline.
        method: What drops: a method with its settings, or its name (`foveate.methods.names`): "v2drop", a preset, a
            chain.
        family: "generic" serves a model that foveate has no family for, if its decoder is of the usual kind; it warns.
        retention: A budget: the share of the vision tokens that a decoder layer processes on average. The method (the
            last of a chain) solves its schedule for it, for every image.
        tokens: The same as a number of tokens.

    Yields:
        The trace, filled by every prefill inside.

    Raises:
        SessionError: If the model is inside such a context already.
        SettingError: If the method's cuts do not fit the decoder's depth, or it cannot spend such a budget.
        UnknownNameError: If there is no method of that name.
        UnsupportedError: If no family serves the model, or it lacks what the method reads.
    """
    session = _attach(model, _chosen(method, retention, tokens), family)
    try:
        yield session.trace
    finally:
        session.detach()


def apply(
    model: nn.Module,
    method: Method | str,
    family: Literal["generic"] | None = None,
    *,
    retention: float | None = None,
    tokens: float | None = None,
) -> Trace:
    """Drop vision tokens from now until `foveate.remove(model)`; see `drop`."""
    return _attach(model, _chosen(method, retention, tokens), family).trace


def remove(model: nn.Module) -> None:
    """Take off what `foveate.apply` put on.

    Raises:
        SessionError: If nothing is on.
    """
    session = next((found for module in inside(model).modules() if (found := _sessions.get(module))), None)
    if session is None:
        raise SessionError(f"Nothing to remove: no method is applied to this {type(model).__name__}.")
    session.detach()


def _chosen(method: Method | str, retention: float | None, tokens: float | None) -> Method:
    """A method by itself or by its name, with the budget given from outside."""
    budget = retention is not None or tokens is not None
    if isinstance(method, str):
        named = grammar.read(method)
        return named.spending(tokens, retention) if budget else named.method()
    if not isinstance(method, Method):
        raise SettingError(f"The second argument is a method such as foveate.V2Drop(), or its name; got {method!r}.")
    return method.with_budget(tokens=tokens, retention=retention) if budget else method


def _attach(model: nn.Module, method: Method, kind: Literal["generic"] | None) -> "Session":
    family = family_for(model, kind)
    if (running := _sessions.get(family.core)) is not None:
        raise SessionError(
            f"This {type(model).__name__} is already dropping with {running.method}. Contexts cannot be nested: "
            "leave the first one, or call foveate.remove(model)."
        )
    method.check(len(family.layers))
    session = Session(family, method)
    session.attach()
    return session


class Session:
    """A method on a model, and how to undo what was put on."""

    def __init__(self, family: Family, method: Method) -> None:
        self.family = family
        self.method = method
        self._program = Program(method, family)
        self._prompts = ModelHooks(family, self._program)
        self.trace = self._prompts.trace
        self._undo: list[Callable[[], None]] = []

    def attach(self) -> None:
        """Put everything on; nothing stays on if that fails."""
        try:
            core, text, prompts = self.family.core, self.family.text, self._prompts
            self._replace(core, self.family.merger, prompts.watch_placeholders)
            for modality in ("image", "video"):
                if hasattr(core, f"get_{modality}_features"):
                    self._replace(core, f"get_{modality}_features", functools.partial(prompts.encode, modality))
            self._keep(self.family.model.register_forward_pre_hook(prompts.before_model, with_kwargs=True))
            self._keep(core.register_forward_pre_hook(prompts.before_merge, with_kwargs=True))
            self._keep(text.register_forward_pre_hook(prompts.before_decoder, with_kwargs=True))
            self._keep(text.register_forward_hook(prompts.after_decoder))
            if self._program.reindexes:
                self._keep(text.rotary_emb.register_forward_pre_hook(prompts.note_ids, with_kwargs=True))
            if hasattr(self.family.model, "init_continuous_batching"):
                self._replace(self.family.model, "init_continuous_batching", refuse_pages)
            if hasattr(self.family.model, "generate"):
                self._replace(self.family.model, "generate", prompts.generate)
                if self._program.reads_text:
                    self._replace(self.family.model, "generate", _refuse_candidates)
            for index, layer in enumerate(self.family.layers):
                # The layer's forward, not a hook: hooks of others then all see the full-length stream.
                self._replace(layer, "forward", functools.partial(prompts.layers.run, index))
            _sessions[core] = self
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take everything off; calling it again does nothing."""
        while self._undo:
            self._undo.pop()()
        if _sessions.get(self.family.core) is self:
            del _sessions[self.family.core]

    def _keep(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def _replace(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        """Put `around(original, *args, **kwargs)` in the place of a method, on this one object."""
        original, own, on = getattr(module, name), name in module.__dict__, True

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs) if on else original(*args, **kwargs)

        def restore() -> None:
            nonlocal on
            on = False  # somebody else's wrapper, put around this one since, goes on calling it
            for place in [place for place, value in vars(module).items() if value is wrapped]:
                if place == name and not own:
                    delattr(module, name)
                else:  # accelerate and others keep what they wrap under another name
                    setattr(module, place, original)

        setattr(module, name, wrapped)
        self._undo.append(restore)


def _refuse_candidates(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Assisted decoding puts its candidates behind the prompt, into the very call that ranks by the text after it."""
    settings = [kwargs, vars(kwargs.get("generation_config") or object.__new__(_Nothing))]
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if any(given.get(name) is not None for given in settings):
            raise UnsupportedError(
                f"{name} puts candidate tokens into the prefill, where this method would read them as the prompt. "
                "Decode without it, or use a method that reads no text (V2Drop, VisionDrop)."
            )
    return original(*args, **kwargs)


class _Nothing:
    """A generation config without settings."""
