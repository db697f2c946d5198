"""What is known to be wrong, a strict xfail each: the change that mends one takes its mark away."""

import pytest


def line(number, words, raises=AssertionError):
    """The mark of a fault: its number in the list of what was found, in a few words, and how it shows."""
    return pytest.mark.xfail(strict=True, raises=raises, reason=f"found §{number}: {words}")


def lines(faults, raises=None):
    """A parameter each, of a table from a number and words to a value, or without `raises` to a value and its error."""
    parameters = []
    for words, value in faults.items():
        value, how = value if raises is None else (value, raises)
        parameters.append(pytest.param(value, id=words, marks=line(*words.split(" ", 1), raises=how)))
    return parameters
