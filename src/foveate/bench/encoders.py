"""A context around each call that encodes pictures: vision tower and projector in one."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from foveate.core.patching import Patcher

__all__ = ["around_encoders"]

ENCODERS = ("get_image_features", "get_video_features")
"""The methods of a model's core that encode pictures and videos, as far as it has them."""


@contextmanager
def around_encoders(core: Any, context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter `context()` around each call of the `ENCODERS` of a model's core.

    Calls inside calls do not count: a model may make a video's features with its images' function.
    """
    outermost = _Outermost(context)
    with Patcher() as patches:
        for name in ENCODERS:
            if hasattr(core, name):
                patches.wrap(core, name, outermost.call)
        yield


class _Outermost:
    """Enters a context around calls, but not around those inside another."""

    def __init__(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        self._context = context
        self._inside = False

    def call(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._inside:
            return original(*args, **kwargs)
        self._inside = True
        try:
            with self._context():
                return original(*args, **kwargs)
        finally:
            self._inside = False
