"""Keeping lmms-eval off the screen."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Keep stdout for results: what the harness and its tasks print goes to stderr, and its progress bars nowhere."""
    with redirect_stdout(sys.stderr):
        import lmms_eval.api.task
        import lmms_eval.evaluator  # sets its own log up while it is imported
        from datasets import disable_progress_bars, enable_progress_bars
        from loguru import logger

        logger.remove()
        logger.add(sys.stderr, level="WARNING", format="lmms-eval: {message}")
        modules = (lmms_eval.evaluator, lmms_eval.api.task)
        bars = [module.tqdm for module in modules]
        disable_progress_bars()
        try:
            for module, bar in zip(modules, bars, strict=True):
                module.tqdm = partial(_hidden, bar)
            yield
        finally:
            for module, bar in zip(modules, bars, strict=True):
                module.tqdm = bar
            enable_progress_bars()


def _hidden(bar: Any, *args: object, **kwargs: object) -> object:
    """A progress bar that shows nothing, whatever its caller says."""
    return bar(*args, **{**kwargs, "disable": True})
