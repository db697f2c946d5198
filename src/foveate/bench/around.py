"""Standing around functions of one object for a while."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from foveate.core.patching import Patcher

__all__ = ["ENCODERS", "around"]

ENCODERS = ("get_image_features", "get_video_features")
"""What encodes pictures in a model's core, vision tower and projector in one."""


@contextmanager
def around(owner: Any, names: Sequence[str], context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter `context()` around each call of these functions, as far as `owner` has them.

    Calls inside calls do not count: a model may make a video's features with its images' function.
    """
    outermost = _Outermost(context)
    with Patcher() as patches:
        for name in names:
            if hasattr(owner, name):
                patches.wrap(owner, name, outermost.call)
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
