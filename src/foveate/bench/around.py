"""Standing around functions of one object, and taking that away again."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

__all__ = ["ENCODERS", "around"]

ENCODERS = ("get_image_features", "get_video_features")
"""What encodes pictures in a model's core, vision tower and projector in one."""


@contextmanager
def around(owner: Any, names: Sequence[str], context: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Enter `context()` around each call of these functions, as far as `owner` has them.

    Calls inside calls do not count: a model may make a video's features with its images' function.
    """
    before = {name: (getattr(owner, name), name in vars(owner)) for name in names if hasattr(owner, name)}
    inside = False

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # generate reads its signature
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return original(*args, **kwargs)
            inside = True
            try:
                with context():
                    return original(*args, **kwargs)
            finally:
                inside = False

        return call

    for name, (original, _) in before.items():
        setattr(owner, name, wrapped(original))
    try:
        yield
    finally:
        for name, (original, own) in before.items():
            if own:
                setattr(owner, name, original)
            else:
                delattr(owner, name)
