"""Foveate inside mlx-vlm: vision tokens are dropped between a model's projector and its decoder (docs/guides/mlx.md).

    with foveate_mlx.drop(model, "divprune", tokens=192) as trace:
        mlx_vlm.generate(model, processor, prompt, image)

Every model of mlx-vlm makes the decoder's input in `get_input_embeddings`. While the context is open, this method of
the model returns a shorter input: its rows, position ids, masks and deepstack features, all at the same columns.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foveate.contract.method import Method
from foveate.errors import SessionError
from foveate.hosts import HostTrace as Trace
from foveate_mlx import host
from foveate_mlx.dropping import Dropper

__all__ = ["Trace", "drop"]


@contextmanager
def drop(
    model: Any, method: Method | str, *, tokens: float | None = None, retention: float | None = None
) -> Iterator[Trace]:
    """Drop vision tokens of a model of mlx-vlm while the context is open.

    Args:
        model: What `mlx_vlm.load` returned.
        method: A method that reads rows or the question, or its name with settings.
        tokens, retention: The budget of an image, one of them. Without it, a name alone keeps a third.

    Raises:
        FoveateError: If the method, the model or this version of mlx-vlm cannot work; while the context is open, if a
            prompt cannot be shortened.
        SessionError: When the context exits, if no vision token was seen in it, so that nothing was dropped.
    """
    host.probe(model.config)
    trace = Trace()
    with host.attached(Dropper(model, method, tokens, retention, trace)):
        yield trace
    if not trace.tokens:
        raise SessionError(
            "No vision token was seen while tokens were to be dropped, so nothing was dropped. Generate inside the "
            "context, with the model it was opened on, and with a picture."
        )
