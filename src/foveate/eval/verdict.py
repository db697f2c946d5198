"""Whether a method is better than random dropping, what it is worse than, and what its accuracy hides."""

from collections.abc import Iterable, Mapping

from foveate.eval.outcome import RIVALS, Outcome
from foveate.eval.stats import Estimate

__all__ = ["collapsed", "verdict", "verdicts"]

ALWAYS = "random"
"""The control that every method is judged by; of another, only that a method is worse is said."""

LEFT = 0.25
"""The share of the full model's accuracy on a task below which the task has collapsed."""


def collapsed(tasks: Mapping[str, float], full: Mapping[str, float]) -> list[str]:
    """Tasks of which less than a quarter of the full model's accuracy is left.

    Args:
        tasks: Accuracy of each task.
        full: The full model's.
    """
    return [task for task, value in tasks.items() if value < LEFT * full.get(task, 0.0)]


def verdict(difference: Estimate, *, higher_is_better: bool = True) -> str:
    """What a paired difference says, by its 95 % interval: "better than", "worse than" or "not told apart from"."""
    if difference.low <= 0 <= difference.high:
        return "not told apart from"
    if (difference.low > 0) == higher_is_better:
        return "better than"
    return "worse than"


def verdicts(outcomes: Iterable[Outcome], *, higher_is_better: bool = True) -> list[str]:
    """A sentence a method: "v2drop: better than random at 192 and 128 tokens; worse than resize at 64 tokens."

    A method without a control of the same true count gets none; nor do the controls.
    """
    tokens: dict[str, dict[str, list[str]]] = {}  # of each method, the counts at which each verdict holds
    for outcome in outcomes:
        if outcome.cell.name in RIVALS:
            continue
        for rival, difference in outcome.against.items():
            words = verdict(difference, higher_is_better=higher_is_better)
            if rival == ALWAYS or words == "worse than":
                of_method = tokens.setdefault(outcome.cell.name, {})
                of_method.setdefault(f"{words} {rival}", []).append(f"{outcome.tokens:.0f}")
    return [_sentence(name, of_method) for name, of_method in tokens.items()]


def _sentence(name: str, tokens: dict[str, list[str]]) -> str:
    phrases = [f"{words} at {_listed(counts)} tokens" for words, counts in tokens.items()]
    return f"{name}: {'; '.join(phrases)}."


def _listed(texts: list[str]) -> str:
    """`192, 128 and 64`."""
    *others, last = texts
    if not others:
        return last
    return f"{', '.join(others)} and {last}"
