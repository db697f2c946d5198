"""What transformers and the hub say is kept off the screen: what matters of it, foveate says itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub.utils.logging
import transformers

__all__ = ["quiet"]


@contextmanager
def quiet(*, bars: bool = False) -> Iterator[None]:
    """Keep warnings and notices of transformers and the hub off the screen.

    Args:
        bars: Whether transformers may show progress bars, as for a download.
    """
    levels = [(log, log.get_verbosity()) for log in (transformers.logging, huggingface_hub.utils.logging)]
    had_bars = transformers.logging.is_progress_bar_enabled()
    for log, _ in levels:
        log.set_verbosity_error()
    if not bars:
        transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        if had_bars:
            transformers.logging.enable_progress_bar()
