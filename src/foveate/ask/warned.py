"""What the caller is warned of: an input that the model does not see as it is, a budget that was not met."""

import warnings

from foveate.ask.answer import Answer
from foveate.ask.prompt import Prompt

__all__ = ["warn_of", "warn_of_budget"]


def warn_of(prompt: Prompt, stacklevel: int) -> None:
    """Warn the caller of what the user should know of an input."""
    for note in prompt.notes:
        warnings.warn(note, stacklevel=stacklevel + 1)


def warn_of_budget(answer: Answer, stacklevel: int) -> None:
    """Warn the caller of a budget that was not met, by more than counting in whole tokens explains."""
    if answer.missed is None or answer.method is None or answer.asked is None:
        return
    if abs(answer.spent - answer.asked * answer.vision_tokens) > 1:
        warnings.warn(f"{answer.method.name} does not meet the budget: {answer.missed}.", stacklevel=stacklevel + 1)
