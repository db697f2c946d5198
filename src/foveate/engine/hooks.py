"""Each layer: the functions of a context's extensions that are called."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any


class Extensions:
    """The extensions of a context. A function is called only of those that override it.

    Attributes:
        watch_all: Whether any must be called at every layer: see `Extension.watches_all`.
    """

    def __init__(self, every: Sequence[Any] = ()) -> None:
        self._every = tuple(every)
        self.attach, self.begin, self.end = self._of("attach"), self._of("begin"), self._of("end")
        self.after_cut, self.rows_for = self._of("after_cut"), self._of("rows_for")
        self.before_layer, self.arguments, self.around_layer, self.after_store = map(self._of, AT_LAYERS)
        self.watch_all = any(own.watches_all for own in self._every if any(map(own.overrides, AT_LAYERS)))

    def _of(self, name: str) -> list[Callable[..., Any]]:
        return [getattr(own, name) for own in self._every if own.overrides(name)]

    @contextmanager
    def around(self, forward: Any, call: Any) -> Iterator[None]:
        """Hold all contexts in which a layer runs."""
        with ExitStack() as contexts:
            for around_layer in self.around_layer:
                contexts.enter_context(around_layer(forward, call))
            yield


AT_LAYERS = ("before_layer", "arguments", "around_layer", "after_store")
"""Functions of an extension that are called at every layer."""
