"""Each layer: the functions of a context's extensions that are called."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from foveate._transformers import FeatureCall
from foveate.core.cut import Cut


class Extensions:
    """The extensions of a context. A function is called only of those that override it.

    Attributes:
        watch_all: Whether any must be called at every layer: see `Extension.watches_all`.
    """

    def __init__(self, every: Sequence[Any] = ()) -> None:
        self._every = tuple(every)
        self.attach, self.encode, self.enter = self._of("attach"), self._of("encode"), self._of("enter")
        self.begin, self.end = self._of("begin"), self._of("end")
        self.after_cut, self.rows_for = self._of("after_cut"), self._of("rows_for")
        self.before_layer, self.arguments, self.around_layer, self.after_store = map(self._of, AT_LAYERS)
        self.watch_all = any(own.watches_all for own in self._every if any(map(own.overrides, AT_LAYERS)))

    def _of(self, name: str) -> list[Callable[..., Any]]:
        return [getattr(own, name) for own in self._every if own.overrides(name)]

    def encode_all(self, call: FeatureCall, prompt: Any) -> tuple[Any, list[Cut | None], list[Cut]]:
        """Run a `get_*_features` call; see `Extension.encode`."""
        for encode in self.encode:
            encoded = encode(call, prompt)
            if encoded is not None:
                return encoded  # type: ignore[no-any-return]
        return call.run(), [], []

    @contextmanager
    def around(self, forward: Any, call: Any) -> Iterator[None]:
        """Hold all contexts in which a layer runs."""
        with ExitStack() as contexts:
            for around_layer in self.around_layer:
                contexts.enter_context(around_layer(forward, call))
            yield


AT_LAYERS = ("before_layer", "arguments", "around_layer", "after_store")
"""Functions of an extension that are called at every layer."""
